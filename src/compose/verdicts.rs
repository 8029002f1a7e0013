//! What is said of the keys of a Compose file that become nothing. Pure.

use super::yaml::Node;

const NO_CONTAINER: &str = "there is no container: a systemd unit has the same (`tandem init --systemd`)";
const THIS_MACHINE: &str = "all of it runs on this machine, and is reached at 127.0.0.1";

/// What a key of a service's becomes; nothing is said of those that need nothing.
pub fn key(key: &str, node: &Node) -> Option<String> {
    let what = match key {
        "restart" => return restart(node),
        "container_name" | "hostname" | "tty" | "stdin_open" | "attach" | "init" | "pull_policy" | "platform"
        | "extends" | "annotations" | "runtime" | "expose" => return None,
        "networks" | "links" | "network_mode" | "domainname" | "mac_address" => THIS_MACHINE,
        "external_links" | "extra_hosts" => "the names are those of this machine's /etc/hosts",
        "dns" | "dns_search" | "dns_opt" => "names are resolved as this machine does",
        "logging" => "`tandem logs` and standard error have the log; [log] shapes it",
        "labels" => "a proxy reads no labels here: point it at workers.listen",
        "deploy" | "scale" => "workers.count is the number of workers",
        "mem_limit" | "mem_reservation" | "memswap_limit" | "cpus" | "cpu_shares" | "cpu_quota" | "cpu_period"
        | "cpuset" | "pids_limit" | "oom_score_adj" | "oom_kill_disable" | "ulimits" | "blkio_config" => {
            "limits are the service manager's (MemoryMax=, CPUQuota=, LimitNOFILE= of a systemd unit)"
        }
        "sysctls" => "kernel settings are this machine's (sysctl)",
        "privileged"
        | "cap_add"
        | "cap_drop"
        | "security_opt"
        | "read_only"
        | "tmpfs"
        | "pid"
        | "ipc"
        | "devices"
        | "device_cgroup_rules"
        | "group_add"
        | "userns_mode"
        | "cgroup"
        | "cgroup_parent"
        | "isolation"
        | "gpus"
        | "credential_spec"
        | "storage_opt"
        | "uts" => NO_CONTAINER,
        "user" => "the workers' user is workers.run_as, when Tandem runs as root",
        "secrets" | "configs" => "files of this machine: name their paths in .env",
        "stop_signal" => "Tandem ends a worker by its own ladder: [stop]",
        "stop_grace_period" => "[stop] has the grace of each",
        "shm_size" => "shared memory is this machine's /dev/shm",
        "develop" => "`tandem up --reload` replaces the workers whenever a file is saved",
        "working_dir" => "workers.dir is the working directory",
        "depends_on" => "Tandem starts in its own order: the database, migrations, workers, then [[process]]",
        "healthcheck" => "Tandem watches what it runs by itself",
        "volumes_from" | "volumes" => "a plain directory of this machine",
        "pre_start" | "post_start" | "pre_stop" => "hooks.after_ready and hooks.before_stop",
        "profiles" | "image" | "build" | "command" | "entrypoint" | "environment" | "env_file" | "ports" => {
            return None;
        }
        _ => "an unknown key: nothing is made of it",
    };
    Some(what.to_owned())
}

fn restart(node: &Node) -> Option<String> {
    match node.text() {
        Some("no") | Some("false") => {
            Some("a process that ends is started again (workers.restart_intensity)".to_owned())
        }
        _ => None,
    }
}

/// What a key beside `services` becomes.
pub fn top(key: &str) -> String {
    let what = match key {
        "volumes" => {
            "volumes are not used: `.tandem/` has the database, and what is told of each service's `volumes` holds"
        }
        "networks" => THIS_MACHINE,
        "secrets" | "configs" => "files of this machine: name their paths in .env",
        "include" => "the files in it were not read: name them as well (`tandem import compose FILE FILE`)",
        _ => "an unknown key: nothing is made of it",
    };
    what.to_owned()
}
