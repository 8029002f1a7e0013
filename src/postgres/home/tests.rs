//! Where things lie, on real directories.

use super::*;
use crate::exit::code_of;

#[test]
fn a_long_path_moves_the_sockets_to_a_short_private_directory() {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let near = Home::at(temp.path(), None);
    assert_eq!((&near.socket_dir, &near.control), (&near.run.join("postgres"), &near.run.join("control.sock")));
    let far = Home::at(&temp.path().join("d".repeat(100)), None);
    assert_eq!(near.notify, near.run.join("notify"));
    assert!(
        far.notify.starts_with("/tmp") && far.notify != far.socket_dir && Some(&*far.notify) != far.control.parent()
    );
    assert!(far.socket_dir.starts_with("/tmp") && far.socket(65535).as_os_str().len() < SOCKET_PATH_MAX);
    assert_eq!(far, Home::at(&temp.path().join("d".repeat(100)), None), "the name is deterministic");
    far.prepare().unwrap();
    let control = far.control.parent().unwrap();
    assert!(control.starts_with("/tmp") && control != far.socket_dir, "{}", control.display());
    assert_eq!(control.metadata().unwrap().mode() & 0o777, 0o700);
    assert_eq!(far.control, Home::at(&temp.path().join("d".repeat(100)), None).control, "and found again");
    fs::remove_dir(control).unwrap();
    assert_eq!(far.socket_dir.metadata().unwrap().mode() & 0o777, 0o700);
    fs::set_permissions(&far.socket_dir, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(code_of(&far.prepare().unwrap_err()), Code::CannotCreate);
    fs::remove_dir(&far.socket_dir).unwrap();
    std::os::unix::fs::symlink(temp.path(), &far.socket_dir).unwrap();
    assert!(far.prepare().unwrap_err().to_string().contains("must be a directory"));
    fs::remove_file(&far.socket_dir).unwrap();
}

#[test]
fn what_is_ours_and_was_opened_is_closed_again_and_what_is_not_is_named_with_its_owner() {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let home = Home::at(&temp.path().join("state"), None);
    home.prepare().unwrap();
    make_dir(&home.data, 0o700, None).unwrap();
    fs::write(secret::path(&home), "x").unwrap();
    let keys = [tls::authority_key_file(&home), tls::server_file(&home)];
    fs::create_dir(home.state.join("tls")).unwrap();
    keys.iter().for_each(|key| fs::write(key, "x").unwrap());
    let [authority_key, server_key] = keys;
    let parts = [
        (authority_key, 0o600),
        (server_key, 0o600),
        (home.run.clone(), 0o755),
        (secret::path(&home), 0o600),
        (home.data.parent().unwrap().to_owned(), 0o700),
        (home.data.clone(), 0o700),
        (home.socket_dir.clone(), 0o700),
    ];
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    for (path, wanted) in &parts {
        // As kubelet does for `fsGroup`.
        fs::set_permissions(path, fs::Permissions::from_mode(wanted | if path.is_dir() { 0o2070 } else { 0o060 }))
            .unwrap();
    }
    home.prepare().unwrap();
    for (path, wanted) in &parts {
        assert_eq!(mode(path), *wanted, "{}", path.display());
    }
    fs::set_permissions(&home.data, fs::Permissions::from_mode(0o750)).unwrap();
    home.prepare().unwrap();
    assert_eq!(mode(&home.data), 0o750, "which PostgreSQL allows");
    assert_eq!(fs::read_to_string(home.state.join(".gitignore")).unwrap(), "*\n");

    fs::remove_dir(&home.socket_dir).unwrap();
    std::os::unix::fs::symlink(temp.path(), &home.socket_dir).unwrap();
    assert!(home.prepare().unwrap_err().to_string().contains("must be a directory"));
    if identity::is_root() {
        fs::remove_file(&home.socket_dir).unwrap();
        fs::create_dir(&home.socket_dir).unwrap();
        std::os::unix::fs::chown(&home.socket_dir, Some(12_345), None).unwrap();
        let message = home.prepare().unwrap_err().to_string();
        assert!(message.contains("belongs to user id 12345") && message.contains("chown -R 0"), "{message}");
    }
}

#[test]
fn a_link_that_takes_the_place_of_a_directory_meanwhile_is_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let [name, link, victim] = ["run", "link", "victim"].map(|name| temp.path().join(name));
    for dir in [&name, &victim] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = crate::durable::exchange(&name, &link);
            }
        });
        for _ in 0..20_000 {
            if close(&name, own_uid(), 0o700, 0o700).unwrap().is_some() {
                for dir in [&name, &link].into_iter().filter(|path| !path.is_symlink()) {
                    let _ = open_itself(dir, OFlag::O_DIRECTORY)
                        .and_then(|dir| dir.set_permissions(fs::Permissions::from_mode(0o777)));
                }
            }
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(victim.metadata().unwrap().mode() & 0o777, 0o777);
}

#[test]
fn a_state_directory_behind_a_closed_door_is_named_with_the_ways_out() {
    let Some(server) = identity::lookup("nobody").filter(|_| identity::is_root()) else {
        return crate::skip::skip("only root can be somebody else");
    };
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = Home::at(&temp.path().join("state"), Some(server)).prepare().unwrap_err();
    assert_eq!(code_of(&error), Code::CannotCreate);
    let message = error.to_string();
    assert!(message.contains(&temp.path().display().to_string()) && message.contains("state_dir"), "{message}");
}
