//! Real mounts in tests: each test runs again as a child in mounts of its own.
//!
//! Tests share a process and its mounts, and a mount made by one must neither
//! be seen by another nor outlive it. So a test re-executes itself, alone,
//! below `unshare`: with a private mount namespace as root, with a user
//! namespace besides as anybody else. What it mounts ends with it.

use std::any::type_name;
use std::env;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::mount::{MsFlags, mount};

/// Set in the child: its scratch directory. Unset in a test as cargo starts it.
const SCRATCH: &str = "OCI_MODEL_CSI_TEST_SCRATCH";

/// Set in the innermost child of [`run_in_user_namespace`].
const NESTED: &str = "OCI_MODEL_CSI_TEST_NESTED";

/// Set to 1 where a test may be skipped that needs a feature which the machine lacks.
/// Otherwise it fails: a green result means that everything was tested.
pub(crate) const MAY_SKIP: &str = "OCI_MODEL_CSI_TEST_MAY_SKIP";

const MOUNTS: &[&str] = &["--mount", "--propagation", "private"];
const USER_AND_MOUNTS: &[&str] =
    &["--user", "--map-root-user", "--mount", "--propagation", "private"];
const NETWORK: &[&str] = &["--net", "--mount", "--propagation", "private"];
const USER_AND_NETWORK: &[&str] =
    &["--user", "--map-root-user", "--net", "--mount", "--propagation", "private"];

/// Runs `body` in a mount namespace of its own, in which this process may mount.
///
/// To be called by the test function itself: the closure's type names the test.
/// `body` gets an empty tmpfs that ends with the namespace. Where the machine
/// allows no namespace, the test fails, or says so on stderr where it may be skipped.
pub(crate) fn run_in_mount_namespace<F: FnOnce(&Path)>(body: F) {
    run_with_mounts(&name_of_caller::<F>(), |scratch| {
        if env::var_os(NESTED).is_none() {
            mount_tmpfs(scratch, MsFlags::empty(), "16m");
        }
        body(scratch);
    });
}

/// As [`run_in_mount_namespace`], with an empty directory of the disk instead of a tmpfs.
pub(crate) fn run_with_mounts(test: &str, body: impl FnOnce(&Path)) {
    run_in_one_of([MOUNTS, USER_AND_MOUNTS], test, body);
}

/// As [`run_with_mounts`], in a network namespace besides, whose loopback interface is up and which
/// has no other.
pub(crate) fn run_with_network(test: &str, body: impl FnOnce(&Path)) {
    run_in_one_of([NETWORK, USER_AND_NETWORK], test, |scratch| {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("ip of iproute2").success(), "the loopback interface is not up");
        body(scratch);
    });
}

fn run_in_one_of(choices: [&[&str]; 2], test: &str, body: impl FnOnce(&Path)) {
    if let Some(scratch) = env::var_os(SCRATCH).map(PathBuf::from) {
        return body(&scratch);
    }
    let Some(namespaces) = choices.into_iter().find(|one| is_possible(one)) else {
        return skip(test);
    };
    let scratch = Scratch(tempfile::tempdir().expect("a scratch directory"));
    check(test, &rerun(test, namespaces).env(SCRATCH, scratch.0.path()).output().expect("unshare"));
}

/// A directory that is removed with all its read-only directories, also by a
/// user who is root in the child's namespace only.
struct Scratch(tempfile::TempDir);

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut open = vec![self.0.path().to_owned()];
        while let Some(directory) = open.pop() {
            // A directory that cannot be changed cannot be removed, and only takes space.
            let _ = fs::set_permissions(&directory, Permissions::from_mode(0o700));
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            open.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
    }
}

/// Called in the body of [`run_in_mount_namespace`]: runs `prepare`, then
/// `body` in a user namespace below, where every flag of the mounts that
/// `prepare` leaves is locked.
pub(crate) fn run_in_user_namespace<F: FnOnce()>(prepare: impl FnOnce(), body: F) {
    let test = &name_of_caller::<F>();
    if env::var_os(NESTED).is_some() {
        return body();
    }
    if !is_possible(USER_AND_MOUNTS) {
        return skip(test);
    }
    prepare();
    check(test, &rerun(test, USER_AND_MOUNTS).env(NESTED, "1").output().expect("unshare"));
}

/// This test again, as a child in the namespaces of this process, with one more variable.
pub(crate) fn rerun_here(test: &str, variable: &str) -> Output {
    alone(&mut Command::new(this_binary()), test)
        .env(NESTED, "1")
        .env(variable, "1")
        .output()
        .expect("this test binary")
}

/// Puts a file in the place of another one, for this namespace.
pub(crate) fn replace_file(place: &str, with: &Path) {
    let none: Option<&str> = None;
    mount(Some(with), place, none, MsFlags::MS_BIND, none).expect("a bind mount");
}

/// A tmpfs of `size`, as in `16m`, at `directory`.
pub(crate) fn mount_tmpfs(directory: &Path, flags: MsFlags, size: &str) {
    let data = format!("size={size},mode=0755");
    mount(Some("tmpfs"), directory, Some("tmpfs"), flags, Some(data.as_str())).expect("a tmpfs");
}

/// `crate::modules::test::{{closure}}` without its ends. Should a compiler
/// write it otherwise, no test has that name, which the parent notices.
pub(crate) fn name_of_caller<F>() -> String {
    let path = type_name::<F>().trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_, test)| test).to_owned()
}

fn rerun(test: &str, namespaces: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(namespaces).arg("--").arg(this_binary());
    alone(&mut command, test);
    command
}

fn alone<'a>(command: &'a mut Command, test: &str) -> &'a mut Command {
    command.args(["--exact", test, "--nocapture", "--test-threads=1"])
}

pub(crate) fn this_binary() -> PathBuf {
    env::current_exe().expect("the path of this test")
}

fn is_possible(namespaces: &[&str]) -> bool {
    Command::new("unshare")
        .args(namespaces)
        .args(["--", "true"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A child that ran no test at all, because the name is wrong, is a failure too.
pub(crate) fn check(test: &str, output: &Output) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{test} in a namespace of its own: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    // Skips of a nested child are passed on.
    forward(&output.stderr);
}

fn skip(test: &str) {
    skipped(&format!(
        "{test}: unshare can make neither a mount nor a user namespace here (not root, and user \
         namespaces are off)"
    ));
}

/// Reports that something is not tested here; fails unless that is allowed.
pub(crate) fn skipped(what: &str) {
    let message = format!("SKIPPED {what}\n");
    let allowed = env::var(MAY_SKIP).is_ok_and(|value| value == "1");
    assert!(allowed, "{message}(set {MAY_SKIP}=1 to leave it out)");
    forward(message.as_bytes());
}

/// Writes past the test harness, which hides the output of tests that pass.
pub(crate) fn forward(bytes: &[u8]) {
    let _ = std::io::stderr().write_all(bytes);
}
