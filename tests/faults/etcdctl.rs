//! What somebody with etcdctl does to one member, or to all of them.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::etcd::Cluster;

/// The process that a member is.
pub(crate) fn pid(etcd: &Cluster, member: usize) -> u32 {
    let child = etcd.members[member].child.as_ref().expect("it runs");
    child.id()
}

/// etcdctl, at that member alone.
pub(crate) fn at(etcd: &Cluster, member: usize, words: &[&str]) -> Result<String, String> {
    etcd.ctl_at(&etcd.endpoints()[member..=member], words)
}

/// The keys of the queue, by the revision that made them: who has it is the first.
pub(crate) fn queue(etcd: &Cluster) -> Result<Vec<String>, String> {
    let words = ["get", "--prefix", "--keys-only", "--sort-by=CREATE"];
    let words = [&words[..], &["/leasehold/v1/main/s/billing/q/"]].concat();
    let said = etcd.ctl(&words)?;
    let lines = said.lines().filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

/// The lease that a place in the queue hangs on.
pub(crate) fn lease_of(place: &str) -> &str {
    let name = place.rsplit('/').next().expect("a key has a name");
    name.split('.').next().expect("a name has a lease")
}

/// All members begin anew with what a snapshot of the first holds, as a cluster of their own.
pub(crate) fn restore_from_snapshot(etcd: &mut Cluster) {
    let all: Vec<Vec<String>> = etcd.members.iter().map(|one| one.args.clone()).collect();
    let data = |args: &[String]| {
        let mut args = args.iter();
        let dir = args.find_map(|arg| arg.strip_prefix("--data-dir="));
        dir.expect("it has a directory").to_owned()
    };
    let snapshot = Path::new(&data(&all[0])).with_extension("snapshot");
    let snapshot = snapshot.display().to_string();
    at(etcd, 0, &["snapshot", "save", &snapshot]).unwrap();
    for n in 0..all.len() {
        etcd.kill(n);
    }
    for args in &all {
        fs::remove_dir_all(data(args)).unwrap();
        let passed_on = ["--name=", "--data-dir=", "--initial"];
        let args = args.iter();
        let args = args.filter(|arg| passed_on.iter().any(|part| arg.starts_with(part)));
        let status = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore", &snapshot])
            .args(args)
            .arg("--initial-cluster-token=restored")
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "etcdctl restores nothing");
    }
    for n in 0..all.len() {
        etcd.start(n);
    }
}
