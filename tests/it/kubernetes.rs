//! `config/kubernetes/`: the manifests against the schemas of Kubernetes and of the Prometheus operator, and against what Tandem
//! and its image are. No cluster is needed, and none is asked: what only a cluster decides is not checked here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::common::certificates::Authority;
use crate::common::project::{Project, python_with, root};
use crate::common::{refusal, tandem};

const BASES: [(&str, &str); 2] = [("attached", "deployment.yaml"), ("managed", "statefulset.yaml")];

/// The checker, with `directories` to look at.
async fn checked(directories: &[&Path]) -> Output {
    let python = python_with("kubernetes", "kubernetes.txt").await;
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests with")]
    Command::new(python).arg(root().join("tests/fixtures/kubernetes.py")).args(directories).output().unwrap()
}

/// The documents by `directory/file`, all of which the schemas take.
async fn documents() -> BTreeMap<String, Value> {
    let at = root().join("config/kubernetes");
    let directories = ["attached", "managed", "monitoring"].map(|name| at.join(name));
    let output = checked(&directories.each_ref().map(|dir| dir.as_path())).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn pod<'a>(documents: &'a BTreeMap<String, Value>, base: &str, file: &str) -> &'a Value {
    &documents[&format!("{base}/{file}")]["spec"]["template"]["spec"]
}

/// The variables of the only container.
fn variables(pod: &Value) -> Vec<(&str, &str)> {
    let variables = pod["containers"][0]["env"].as_array().unwrap();
    variables.iter().map(|one| (one["name"].as_str().unwrap(), one["value"].as_str().unwrap())).collect()
}

/// What the Dockerfile's `ENV` sets.
fn of_image() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("Dockerfile")).unwrap().replace("\\\n", " ");
    let lines = text.lines().filter_map(|line| line.strip_prefix("ENV "));
    let pairs = lines.flat_map(str::split_whitespace).map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn the_schemas_take_every_manifest_and_refuse_what_is_wrong() {
    let documents = documents().await;
    for (name, kustomization) in documents.iter().filter(|(name, _)| name.ends_with("/kustomization.yaml")) {
        // What is checked is what a cluster gets: nothing patches or generates.
        let keys: Vec<&String> = kustomization.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["apiVersion", "kind", "resources"], "{name}");
        let dir = name.split('/').next().unwrap();
        let listed: BTreeSet<String> = kustomization["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| format!("{dir}/{}", file.as_str().unwrap()))
            .collect();
        let there: BTreeSet<String> =
            documents.keys().filter(|file| file.starts_with(&format!("{dir}/")) && *file != name).cloned().collect();
        assert_eq!(listed, there, "{name}");
    }
    // The overlay of the book leads to what is there.
    let page = fs::read_to_string(root().join("docs/containers.md")).unwrap();
    let used: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("  - ../tandem/")).collect();
    assert_eq!(used.len(), 2);
    assert!(used.iter().all(|dir| root().join(dir).join("kustomization.yaml").is_file()), "{used:?}");
    let broken = tempfile::tempdir().unwrap();
    let at = root().join("config/kubernetes");
    for (file, right, wrong) in [
        ("attached/deployment.yaml", "periodSeconds: 2\n", "periodSecond: 2\n"),
        ("attached/service.yaml", "port: 80\n", "port: eighty\n"),
        ("attached/poddisruptionbudget.yaml", "maxUnavailable: 1\n", "maxUnavailable: 1\n  maxUnavailable: 2\n"),
        ("monitoring/servicemonitor.yaml", "scrapeTimeout:", "scrapeTimeOut:"),
        ("managed/statefulset.yaml", "serviceName:", "servicename:"),
    ] {
        let text = fs::read_to_string(at.join(file)).unwrap();
        let name = file.split('/').next_back().unwrap();
        fs::write(broken.path().join(name), text.replacen(right, wrong, 1)).unwrap();
    }
    let refused = refusal::said(checked(&[broken.path()]).await);
    refused
        .expect(1, &["deployment.yaml: ", "periodSecond", "service.yaml: ", "eighty", "maxUnavailable'} stands twice"]);
    refused.expect(1, &["servicemonitor.yaml: not all of this is known", "statefulset.yaml: "]);
}

#[tokio::test]
async fn ports_probes_and_selectors_lead_to_what_the_image_serves() {
    let documents = documents().await;
    let image: BTreeMap<String, String> = of_image().into_iter().collect();
    let port = |key: &str| image[key].rsplit(':').next().unwrap().parse::<u64>().unwrap();
    let ports = [("http", port("TANDEM_WORKERS__LISTEN")), ("health", port("TANDEM_HEALTH__LISTEN"))];
    for (base, file) in BASES {
        let container = &pod(&documents, base, file)["containers"][0];
        let expected: Vec<Value> =
            ports.iter().map(|(name, number)| json!({"name": name, "containerPort": number})).collect();
        assert_eq!(container["ports"], json!(expected));
        let service = &documents[&format!("{base}/service.yaml")]["spec"];
        let targets: Vec<&Value> =
            service["ports"].as_array().unwrap().iter().map(|port| &port["targetPort"]).collect();
        assert_eq!(targets, ["http", "health"]);
        // Liveness is never the database's: /live knows nothing of it.
        for (probe, path) in [("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")] {
            assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "health"}), "{base} {probe}");
        }
        let labels = &documents[&format!("{base}/{file}")]["spec"]["template"]["metadata"]["labels"];
        for (file, selector) in [("service.yaml", "/selector"), ("networkpolicy.yaml", "/podSelector/matchLabels")] {
            assert_eq!(documents[&format!("{base}/{file}")]["spec"].pointer(selector), Some(labels), "{base}/{file}");
        }
        for file in [file, "poddisruptionbudget.yaml"] {
            assert_eq!(
                &documents[&format!("{base}/{file}")]["spec"]["selector"]["matchLabels"],
                labels,
                "{base}/{file}"
            );
        }
        // One of several goes at a time; where there is one alone, a drained node must not wait for ever.
        assert_eq!(documents[&format!("{base}/poddisruptionbudget.yaml")]["spec"]["maxUnavailable"], 1);
        assert_eq!(documents["monitoring/servicemonitor.yaml"]["spec"]["selector"]["matchLabels"], *labels);
        assert_eq!(&documents[&format!("{base}/service.yaml")]["metadata"]["labels"], labels);
    }
    let endpoint = &documents["monitoring/servicemonitor.yaml"]["spec"]["endpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&json!("health"), &json!("/metrics")));
    // And these are what Tandem answers on.
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    let mut running = tandem::Tandem::up(&project);
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(tandem::get(project.health, path).map(|(code, _)| code), Some(200), "{path}");
    }
    assert_eq!(running.stop(), 0, "{}", running.log());
}

/// Kubernetes' Pod Security Standards, "Restricted", and a root file system that is closed besides.
#[tokio::test]
async fn pods_are_restricted_and_write_where_something_is_mounted() {
    let documents = documents().await;
    let image: BTreeMap<String, String> = of_image().into_iter().collect();
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    for (base, file) in BASES {
        let pod = pod(&documents, base, file);
        let security = &pod["securityContext"];
        assert_eq!(
            (&security["runAsNonRoot"], &security["seccompProfile"]["type"]),
            (&json!(true), &json!("RuntimeDefault"))
        );
        let user = format!("USER {}:{}", security["runAsUser"], security["runAsGroup"]);
        assert!(dockerfile.contains(&user) && security["fsGroup"] == security["runAsGroup"], "{user}");
        let container = &pod["containers"][0];
        let restricted = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        });
        assert_eq!(container["securityContext"], restricted, "{base}");
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["enableServiceLinks"], false, "a service called postgres would set POSTGRES_PORT");
        for name in ["hostNetwork", "hostPID", "hostIPC", "hostUsers"] {
            assert_eq!(pod[name], Value::Null);
        }
        assert!(
            container["resources"]["requests"]["memory"].is_string()
                && container["resources"]["limits"]["memory"].is_string()
        );
        let mounts = container["volumeMounts"].as_array().unwrap();
        let mounted: BTreeSet<&str> = mounts.iter().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
        assert!(mounted.contains(image["TANDEM_STATE_DIR"].as_str()) && mounted.contains("/tmp"), "{mounted:?}");
        let volumes = pod["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]);
        let claims =
            documents[&format!("{base}/{file}")]["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
        let known = volumes.chain(claims.map(|claim| &claim["metadata"]["name"]));
        let names = |all: Vec<&Value>| all.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
        let used = mounts.iter().map(|mount| &mount["name"]).collect();
        assert_eq!(names(used), names(known.collect()), "{base}");
        // Of the authority's secret only the certificate is mounted.
        assert!(!serde_json::to_string(pod).unwrap().contains("ca.key"));
    }
}

#[tokio::test]
async fn the_grace_period_is_what_tandem_plans_for_and_long_enough() {
    let documents = documents().await;
    for (base, file) in BASES {
        let pod = pod(&documents, base, file);
        let project = Project::app("plain:app").without("postgres.port");
        let uri = project.dir().join("uri");
        fs::write(&uri, "postgresql://app:pa55word@backend-db-rw.default:5432/app").unwrap();
        let authority = project.dir().join("ca.crt");
        fs::write(&authority, Authority::new().pem()).unwrap();
        let mut check = tandem::command(&project);
        for (name, value) in of_image().iter().filter(|(name, _)| name.starts_with("TANDEM_STOP__")) {
            check.env(name, value);
        }
        for (name, value) in variables(pod) {
            match name {
                "DATABASE_URL_FILE" => check.env(name, &uri),
                "PGSSLROOTCERT" => check.env(name, &authority),
                name => check.env(name, value),
            };
        }
        let checked = refusal::said(check.args(["check", "--json"]).output().unwrap());
        let plan: Value = serde_json::from_str(&checked.said).unwrap_or_else(|_| panic!("{}", checked.said));
        assert_eq!(plan["problems"], json!([]), "every variable is one that Tandem knows");
        let (grace, stop) = (pod["terminationGracePeriodSeconds"].as_f64().unwrap(), &plan["stop"]);
        assert_eq!(stop["platform_seconds"], grace, "{base}");
        assert!(stop["orderly_seconds"].as_f64().unwrap() <= grace, "{base}: {stop}");
        // Proxies look away while Tandem goes on serving: no hook has to wait for them.
        assert_eq!(pod["containers"][0]["lifecycle"], Value::Null);
        let key = |name: &str| plan["keys"].as_array().unwrap().iter().find(|key| key["key"] == name).unwrap().clone();
        assert_eq!(key("stop.drain_delay")["value"], "5s");
        if base == "attached" {
            // CloudNativePG's secret of a cluster is called `<cluster>-app`, its service of the primary `<cluster>-rw`.
            let secrets: Vec<&Value> = pod["volumes"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|volume| volume["secret"].get("secretName"))
                .collect();
            assert_eq!(secrets, ["backend-db-app", "backend-db-ca"]);
            let url = key("postgres.url").to_string();
            assert!(url.contains("backend-db-rw") && !url.contains("pa55word"), "{url}");
            // The name resolves in the cluster alone.
            let odd =
                plan["notices"].as_array().unwrap().iter().find(|notice| !notice.to_string().contains("backend-db-rw"));
            assert_eq!(odd, None);
        } else {
            assert_eq!(plan["notices"], json!([]));
        }
    }
}
