//! Files of a task's sandbox, whatever the task does to them meanwhile.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use proffer_client::hands::{FileHead, FileKind, FilePiece};
use proffer_client::rows::TaskFilter;
use proffer_tests::cluster::{Cluster, Options, audit, until};
use tokio::io::AsyncReadExt as _;

use super::{LIMIT, beside_others, best, good, json, ran_on, rounds};

async fn cluster() -> Cluster {
    Cluster::start(Options { containerizer: best(), ..Options::default() }).await
}

/// Starts a task and waits for what it says when its files are there.
async fn start(cluster: &Cluster, name: &str, script: &str) {
    let args =
        ["run", "--detach", "--name", name, "--cpus", "0.2", "--mem", "256MiB", "--", "sh", "-c", script];
    good(cluster.run(LIMIT, &args).await);
    until("its files are there", LIMIT, async || {
        let ran = cluster.run(LIMIT, &["task", "logs", name]).await;
        ran.stdout.contains("files are there").then_some(())
    })
    .await;
}

const READY: &str = "echo files are there; while :; do sleep 1; done";

/// Of an interface that anyone may call, whether or not he says that it was all.
#[tokio::test]
async fn what_is_sent_without_an_end_is_refused() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    start(&cluster, "web", READY).await;
    let admin = cluster.admin();
    let row = admin.tasks(&TaskFilter::default()).await.unwrap().remove(0);
    let writer = admin.write_files(row.framework, &row.task_id, b"", b"half").await.unwrap();
    let head = FileHead { kind: FileKind::Regular.into(), mode: 0o600, ..FileHead::default() };
    assert!(writer.send(FilePiece::Head(head)).await);
    assert!(writer.send(FilePiece::Data("begun".into())).await);
    let done = tokio::time::timeout(LIMIT, writer.finish()).await.expect("an answer");
    let error = done.expect_err("refused");
    assert!(error.to_string().contains("no end came"), "{error}");
    assert!(!good(cluster.run(LIMIT, &["task", "files", "web"]).await).contains("half"));
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn files_are_listed_and_copied_both_ways() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    ran_on();
    let make = "mkdir -p d/e/f; echo one > d/a; printf 'x\\033[31m' > \"d/$(printf 'n\\033[31m\\377')\"; \
                head -c 3000000 /dev/urandom > d/e/f/big; chmod 640 d/a; echo 2 > d/e/two; ";
    start(&cluster, "web", &format!("{make}{READY}")).await;
    let run = async |args: &[&str]| cluster.run(LIMIT, &[&["task"], args].concat()).await;

    let table = good(run(&["files", "web", "d"]).await);
    assert!(table.contains("n\\u{1b}[31m\\xff") && !table.contains('\u{1b}'), "{table:?}");
    let list = json(run(&["files", "web", "d", "-o", "json"]).await);
    let kinds: Vec<_> =
        list["files"].as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["file", "directory", "file"]);
    assert_eq!(run(&["files", "web", "nothing"]).await.code, Some(3));
    assert_eq!(run(&["files", "web", "/etc"]).await.code, Some(2));
    assert_eq!(run(&["files", "web", "../.."]).await.code, Some(2));

    let home = cluster.dir().join("here");
    fs::create_dir(&home).unwrap();
    let here = |name: &str| home.join(name).display().to_string();
    good(run(&["cp", "web:d", &here("got")]).await);
    assert_eq!(fs::read_to_string(home.join("got/a")).unwrap(), "one\n");
    assert_eq!(fs::metadata(home.join("got/e/f/big")).unwrap().len(), 3_000_000);
    let odd = std::ffi::OsStr::from_bytes(b"got/n\x1b[31m\xff");
    assert_eq!(fs::read(home.join(odd)).unwrap(), b"x\x1b[31m");
    assert_eq!(good(run(&["cp", "web:d/a", "-"]).await), "one\n");
    // Into a directory that is there, under its own name.
    good(run(&["cp", "web:d/a", &here("")]).await);
    assert_eq!(fs::read_to_string(home.join("a")).unwrap(), "one\n");
    assert_eq!(run(&["cp", "web:d", &here("none/x")]).await.code, Some(1));

    // And back; the task's user owns it, and the program inside sees the same.
    good(run(&["cp", &here("got"), "web:back"]).await);
    let sum = "cd $0 && find . -type f -exec sha256sum {} + | sort";
    let inside = async |dir: &str| run(&["exec", "web", "--", "sh", "-c", sum, dir]).await;
    let (there, back) = (good(inside("d").await), good(inside("back").await));
    assert_eq!(there, back);
    assert_eq!(there.lines().count(), 4);
    let owner = good(run(&["exec", "web", "--", "sh", "-c", "stat -c %u back back/e/two; id -u"]).await);
    assert_eq!(owner.lines().collect::<std::collections::BTreeSet<_>>().len(), 1, "{owner}");
    assert_eq!(run(&["cp", &here("got/a"), "web:nowhere/x"]).await.code, Some(3));
    assert_eq!(run(&["cp", &here("nothing"), "web:"]).await.code, Some(3));
    assert_eq!(run(&["cp", "web:d", "web:e"]).await.code, Some(2));

    // They outlive the task.
    good(run(&["kill", "web"]).await);
    until("it has ended", LIMIT, async || good(run(&["show", "web"]).await).contains("KILLED").then_some(()))
        .await;
    assert_eq!(good(run(&["cp", "web:back/a", "-"]).await), "one\n");
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// Everything that a task can put in the way of whoever looks into its sandbox, changed as fast as it can.
#[tokio::test]
async fn a_hostile_sandbox_shows_nothing_of_the_host_and_hangs_nobody() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    ran_on();
    let secret = cluster.dir().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "SECRET OF THE HOST").unwrap();
    let secret = secret.display().to_string();
    let make = format!(
        "mkdir -p d/real; echo mine > d/real/file; ln -s {secret} d/link; ln -s {secret}/file d/filelink; \
         ln -s /proc/self/root d/magic; ln -s . d/loop; mkfifo d/fifo; ln d/real/file d/hard; \
         (cd d; while :; do mv -T real other; ln -sfn {secret} real; rm real; mv -T other real; done 2>/dev/null) & "
    );
    start(&cluster, "hostile", &format!("{make}{READY}")).await;
    let home = cluster.dir().join("here");
    fs::create_dir(&home).unwrap();
    let began = Instant::now();
    let mut copied = 0;
    for round in 0..rounds(25) {
        let to = home.join(round.to_string());
        let args = ["task", "cp", "hostile:d", &to.display().to_string()];
        let ran = cluster.run(LIMIT, &args).await;
        // What cannot be copied safely is left out, and said; if `d` is whole all else is there.
        assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
        assert!(!ran.stderr.contains("SECRET"), "{ran:?}");
        copied += usize::from(no_secret(&to));
        for path in ["d/real/file", "d/link/file", "d/magic/etc/passwd", "d/filelink", "d/fifo"] {
            let ran = cluster.run(LIMIT, &["task", "cp", &format!("hostile:{path}"), "-"]).await;
            assert!(["", "mine\n", "from outside"].contains(&ran.stdout.as_str()), "{path}: {ran:?}");
        }
        good(cluster.run(LIMIT, &["task", "files", "hostile", "d"]).await);
        let up = cluster.dir().join("up");
        fs::write(&up, "from outside").unwrap();
        drop(cluster.run(LIMIT, &["task", "cp", &up.display().to_string(), "hostile:d/real/file"]).await);
    }
    assert!(copied > 0, "some were copied");
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
    assert_eq!(fs::read_to_string(Path::new(&secret).join("file")).unwrap(), "SECRET OF THE HOST");
    assert_eq!(fs::read_dir(&secret).unwrap().count(), 1, "nothing was put there");
    good(cluster.run(LIMIT, &["task", "kill", "hostile", "--grace", "0"]).await);
    cluster.all_free(LIMIT).await;
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn large_and_deep_files_cost_the_agent_nothing() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    let make = "truncate -s 1T sparse; i=0; at=.; while [ $i -lt 60 ]; do at=$at/deep/$i; i=$((i+1)); done; \
                mkdir -p $at; ";
    start(&cluster, "hostile", &format!("{make}{READY}")).await;
    let home = cluster.dir().join("here");
    fs::create_dir(&home).unwrap();
    // A terabyte of nothing is left when its reader leaves, and costs the agent nothing.
    let before = audit::resident_bytes(cluster.agents[0].pid());
    let mut child =
        cluster.proffer(&cluster.addresses(), &["task", "cp", "hostile:sparse", "-"]).spawn().unwrap();
    // More than the agent may grow by has gone through it by then.
    let mut through = child.stdout.take().unwrap().take(40 << 20);
    let mut nowhere = tokio::io::sink();
    let read = tokio::time::timeout(LIMIT, tokio::io::copy(&mut through, &mut nowhere));
    assert_eq!(read.await.expect("it flows").unwrap(), 40 << 20);
    child.kill().await.unwrap();
    let after = audit::resident_bytes(cluster.agents[0].pid());
    assert!(after < before + (32 << 20), "the agent grew from {before} to {after} bytes");
    good(cluster.run(LIMIT, &["task", "cp", "hostile:deep", &home.join("deep").display().to_string()]).await);
    good(cluster.run(LIMIT, &["task", "kill", "hostile", "--grace", "0"]).await);
    cluster.all_free(LIMIT).await;
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// Whether there is something, and nothing of the host's in it.
fn no_secret(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    let mut some = false;
    for entry in entries.flatten() {
        let kind = entry.file_type().unwrap();
        assert!(!kind.is_symlink(), "{entry:?}: no link is made here");
        if kind.is_dir() {
            some |= no_secret(&entry.path());
        } else {
            assert!(!fs::read_to_string(entry.path()).unwrap().contains("SECRET"), "{entry:?}");
            some = true;
        }
    }
    some
}

#[tokio::test]
async fn a_directory_of_many_files_is_listed_in_pages() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    const MANY: usize = 30_000;
    let make =
        format!("mkdir many; cd many; seq -f 'name-of-some-length-%.0f' 1 {MANY} | xargs touch; cd ..; ");
    start(&cluster, "web", &format!("{make}{READY}")).await;
    let ran = cluster.run(LIMIT, &["task", "files", "web", "many", "--quiet"]).await;
    assert!(ran.stderr.contains("--all"), "{}", ran.stderr);
    let listed = good(ran).lines().count();
    assert!((10_000..12_000).contains(&listed), "{listed}");
    let all = good(cluster.run(LIMIT, &["task", "files", "web", "many", "--quiet", "--all"]).await);
    let names: std::collections::BTreeSet<&str> = all.lines().collect();
    assert_eq!(names.len(), MANY);
    assert_eq!(cluster.end(), Vec::<String>::new());
}
