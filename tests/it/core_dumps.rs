//! The memory of the program, which holds keys and tokens, is in no core dump, and other processes
//! of its user cannot read it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use localstore::{Action, LocalStore, Operation, Rule};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::support::driver::{BINARY, Setup};
use crate::support::models::store_with_phi3;
use crate::support::run::{end_to_end, eventually};

/// A user without any rights, as most systems have one.
const OTHER_USER: u32 = 65534;

/// Any time that a process may take to start.
const START: Duration = Duration::from_secs(20);

/// The command with arguments with which it waits for an answer of the store.
fn waiting(mut command: Command, directory: &Path, store: &LocalStore) -> Command {
    store.faults().add(Rule::new(Action::Latency { ms: 100_000 }).operation(Operation::List));
    let config = store.write_cli_config(&directory.join("oci")).unwrap();
    command.args(["ls", "oci://ai-model-cache/", "--oci-endpoint", &store.endpoint()]);
    command.arg("--config-file").arg(config);
    command
}

/// A program that may leave a core of any size in its directory.
fn with_cores(program: &str, directory: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\"", program])
        .current_dir(directory)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn pid_of(process: &Child) -> Pid {
    Pid::from_raw(i32::try_from(process.id()).unwrap())
}

/// Whether a process that crashes leaves a core.
fn dumps_core(mut process: Child, signal: Signal) -> bool {
    kill(pid_of(&process), signal).unwrap();
    let status = process.wait().unwrap();
    assert_eq!(status.signal(), Some(signal as i32), "{status:?}");
    status.core_dumped()
}

/// Waits until the command has asked the store, and so has its credential in memory.
async fn has_asked(store: &LocalStore) {
    eventually("the command asks", START, async || {
        (store.stats().requests_of(Operation::GetNamespace) > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_crash_leaves_no_core_and_no_other_user_can_read_the_memory() {
    let scratch = tempfile::tempdir().unwrap();
    // The premise: crashes leave cores here, if the kernel writes them to files.
    let control = with_cores("sleep", scratch.path()).arg("60").spawn().unwrap();
    eventually("sleep runs", START, async || {
        let line = fs::read(format!("/proc/{}/cmdline", control.id())).unwrap_or_default();
        line.starts_with(b"sleep").then_some(())
    })
    .await;
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    assert!(dumps_core(control, Signal::SIGABRT) || pattern.contains('/'), "{pattern}");
    // Rust's handler takes SIGSEGV and SIGBUS that come from outside, and a shell that starts the
    // tests in the background has them ignore SIGQUIT.
    for signal in [Signal::SIGABRT, Signal::SIGILL, Signal::SIGFPE] {
        let (directory, store) = (tempfile::tempdir().unwrap(), store_with_phi3());
        let command = with_cores(BINARY, directory.path());
        let process = waiting(command, directory.path(), &store).spawn().unwrap();
        has_asked(&store).await;
        assert!(!dumps_core(process, signal), "{signal}");
        let names = fs::read_dir(directory.path()).unwrap();
        let left: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["oci"], "{signal}");
    }
}

#[tokio::test]
async fn files_of_the_process_belong_to_root_and_not_to_its_user() {
    let (directory, store) = (tempfile::tempdir().unwrap(), store_with_phi3());
    // The way to the program may be closed to other users.
    let program = directory.path().join("program");
    fs::hard_link(BINARY, &program).or_else(|_| fs::copy(BINARY, &program).map(drop)).unwrap();
    let mut command = waiting(Command::new(program), directory.path(), &store);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut user = geteuid().as_raw();
    if user == 0 {
        // The files of root's processes always belong to root.
        user = OTHER_USER;
        command.uid(user).gid(user);
        open_to_all(directory.path());
    }
    let mut process = command.spawn().unwrap();
    has_asked(&store).await;
    for file in ["environ", "maps", "mem"] {
        let owner = fs::metadata(format!("/proc/{}/{file}", process.id())).unwrap().uid();
        assert_ne!(owner, user, "{file} can be read by processes of the same user");
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

/// Lets another user read the files.
fn open_to_all(directory: &Path) {
    let status = Command::new("chmod").args(["-R", "a+rX"]).arg(directory).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_driver_that_crashes_leaves_no_core() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Setup::new(scratch, &store).start().await;
        let pid = Pid::from_raw(i32::try_from(driver.pid()).unwrap());
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let of_cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let most = of_cores.split_whitespace().nth(5).unwrap();
        assert_ne!(most, "0", "the premise: this user may have cores");
        let core = format!("--core={most}:{most}");
        let raised = Command::new("prlimit").args([&core, "--pid", &pid.to_string()]).status();
        assert!(raised.unwrap().success());
        kill(pid, Signal::SIGABRT).unwrap();
        let status = driver.ended().await;
        assert_eq!((status.signal(), status.core_dumped()), (Some(6), false), "{status:?}");
    });
}
