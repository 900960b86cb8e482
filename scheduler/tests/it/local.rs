//! The servers of `dodo up`: start, crash, stale processes, restart on the same data.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use dodo_common::storage::object::{PutOutcome, S3Settings, Store, StoreError};
use dodo_scheduler::local::postgres::PostgresServer;
use dodo_scheduler::local::redis::RedisServer;
use dodo_scheduler::local::s3::{Fault, S3Endpoint};
use dodo_scheduler::local::site::{RequestLog, SampleSite};
use dodo_scheduler::local::{PortTaken, lock_dir};
use tempfile::TempDir;
use tokio_postgres::NoTls;

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_its_data_over_crash_restart_and_a_new_start() -> Result<()> {
    let dir = open_dir()?;
    let mut server = RedisServer::start(dir.path())?;
    let url = server.url();
    redis_command(&url, &["SET", "key", "value"]).await?;
    assert_eq!(redis_command(&url, &["CONFIG", "GET", "maxmemory-policy"]).await?, "maxmemory-policy noeviction");

    server.restart()?;
    assert_eq!(server.url(), url);
    assert_eq!(redis_command(&url, &["GET", "key"]).await?, "value");
    server.kill();
    assert!(redis_command(&url, &["GET", "key"]).await.is_err());
    let thief = TcpListener::bind(("127.0.0.1", port(&url)?))?;
    assert!(server.restart().expect_err("taken").is::<PortTaken>());
    drop(thief);
    server.restart()?;
    assert_eq!(redis_command(&url, &["GET", "key"]).await?, "value");

    // A killed `dodo up` runs no destructor: its server lives on until the next start.
    std::mem::forget(server);
    let mut server = RedisServer::start(dir.path())?;
    assert!(redis_command(&url, &["PING"]).await.is_err());
    assert_eq!(redis_command(&server.url(), &["GET", "key"]).await?, "value");
    let socket = server.socket_url().context("a short path has a socket")?;
    assert_eq!(redis_command(&socket, &["GET", "key"]).await?, "value");
    server.kill();
    server.restart()?;
    assert_eq!(redis_command(&socket, &["GET", "key"]).await?, "value");
    let stranger = socket.split("&pass").next().context("a url")?;
    assert!(redis_command(stranger, &["GET", "key"]).await.is_err(), "the password is asked for here, too");
    server.stop();
    server.stop();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_its_data_over_crash_restart_and_a_new_start() -> Result<()> {
    let dir = open_dir()?;
    let mut server = PostgresServer::start(&dir.path().join("pg"), true)?;
    let url = server.url();
    postgres_value(&url, "CREATE TABLE t AS SELECT 7 AS n").await?;
    assert_eq!(postgres_value(&url, "SHOW fsync").await?, "on");
    assert_eq!(postgres_value(&url, "SHOW data_checksums").await?, "on");

    // A crash below a session at work: the orphan must not prevent the restart.
    let client = postgres_client(&url).await?;
    let sleeper = tokio::spawn(async move { client.simple_query("SELECT pg_sleep(2)").await });
    server.kill();
    let thief = TcpListener::bind(("127.0.0.1", port(&url)?))?;
    assert!(server.restart().expect_err("taken").is::<PortTaken>());
    drop(thief);
    server.restart()?;
    assert!(sleeper.await?.is_err());
    assert_eq!(postgres_value(&url, "SELECT n FROM t").await?, "7");

    std::mem::forget(server);
    let mut server = PostgresServer::start(&dir.path().join("pg"), true)?;
    assert!(postgres_value(&url, "SELECT 1").await.is_err());
    assert_eq!(postgres_value(&server.url(), "SELECT n FROM t").await?, "7");
    let socket = server.socket_url().context("a short path has a socket")?;
    assert_eq!(postgres_value(&socket, "SELECT coalesce(inet_server_port()::text, 'none')").await?, "none");
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(10));
    Ok(())
}

#[test]
fn a_broken_cluster_is_explained_in_one_line() -> Result<()> {
    let dir = open_dir()?;
    let server = PostgresServer::start(dir.path(), true)?;
    drop(server);
    std::fs::remove_file(dir.path().join("data/global/pg_control"))?;
    let err = PostgresServer::start(dir.path(), true).expect_err("no control file");
    let text = format!("{err:#}");
    assert!(text.contains("pg_control"), "{text}");
    assert!(text.contains("postgres.log"), "{text}");
    assert_eq!(text.lines().count(), 1);
    Ok(())
}

#[test]
fn as_root_a_closed_parent_directory_is_named() -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700))?;
    let err = PostgresServer::start(&dir.path().join("pg"), true).expect_err("closed");
    let text = format!("{err:#}");
    assert!(text.contains(&format!("enter {}:", dir.path().display())), "{text}");
    assert!(text.contains("--data"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_refuses_strangers_injects_faults_and_frees_its_port() -> Result<()> {
    let dir = open_dir()?;
    let s3 = S3Endpoint::start(dir.path(), "archive")?;
    let addr = s3.endpoint().replace("http://", "");
    assert_eq!(get(&addr, "/archive/key")?.0, 403);
    s3.set_fault(Fault::Refuse503);
    let (status, text) = get(&addr, "/archive/key")?;
    assert_eq!(status, 503);
    assert!(text.contains("<Code>SlowDown</Code>"), "{text}");
    s3.set_fault(Fault::Slow(60));
    let begin = Instant::now();
    assert_eq!(get(&addr, "/archive/key")?.0, 403);
    assert!(begin.elapsed() >= Duration::from_millis(60));

    s3.stop().await;
    assert!(get(&addr, "/archive/key").is_err());
    let again = S3Endpoint::start_on(dir.path(), "archive", Some(s3.port()))?;
    assert_eq!(again.secret_key(), s3.secret_key());
    assert_eq!(get(&addr, "/archive/key")?.0, 403);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_puts_at_the_same_moment_one_makes_the_object() -> Result<()> {
    dodo_common::install_tls_provider();
    let dir = open_dir()?;
    let s3 = S3Endpoint::start(dir.path(), "archive")?;
    let store = |bucket: &str| {
        Store::s3(&S3Settings {
            endpoint: s3.endpoint(),
            bucket: bucket.to_owned(),
            region: "us-east-1".to_owned(),
            access_key: s3.access_key().to_owned(),
            secret_key: s3.secret_key().to_owned(),
            allow_http: true,
        })
    };
    let archive = store("archive")?;
    for round in 0..8 {
        let key = format!("archive/t/pages/{round}/1-2.warc.gz");
        let bodies: Vec<Bytes> = (0..12_u8).map(|n| Bytes::from(vec![n; 100_000 + usize::from(n)])).collect();
        let puts = bodies.iter().map(|body| archive.put_new(&key, body.clone()));
        let outcomes: Vec<PutOutcome> = futures::future::try_join_all(puts).await?;
        let created: Vec<usize> = (0..12).filter(|n| outcomes[*n] == PutOutcome::Created).collect();
        assert_eq!(created.len(), 1, "{outcomes:?}");
        assert!(archive.get(&key).await? == bodies[created[0]], "it is the one that was created");
        assert_eq!(archive.put_new(&key, bodies[0].clone()).await?, PutOutcome::Exists);
    }
    let listed = archive.list("archive/", None).await?;
    assert_eq!(listed.len(), 8);
    let side_files = || -> Result<usize> {
        let files = std::fs::read_dir(dir.path().join("objects"))?.collect::<std::io::Result<Vec<_>>>()?;
        Ok(files.iter().filter(|file| file.file_name().to_string_lossy().ends_with(".json")).count())
    };
    let before = side_files()?;
    for (key, _) in &listed {
        archive.delete(key).await?;
        assert_eq!(archive.put_new(key, Bytes::from_static(b"anew")).await?, PutOutcome::Created);
        assert_eq!(archive.get(key).await?, Bytes::from_static(b"anew"));
    }
    assert_eq!(side_files()?, before);
    // What was told of an object that was put in another way is not told of a later one.
    archive.put("archive/x", Bytes::from_static(b"x")).await?;
    assert_eq!(side_files()?, before + 2);
    archive.delete("archive/x").await?;
    assert_eq!(archive.put_new("archive/x", Bytes::from_static(b"y")).await?, PutOutcome::Created);
    assert_eq!(side_files()?, before + 1);
    let missing = store("elsewhere")?.put_new("archive/x", Bytes::new()).await;
    assert!(matches!(missing, Err(StoreError::BucketMissing { .. })), "{missing:?}");
    let left = std::fs::read_dir(dir.path().join("objects"))?.filter_map(Result::ok);
    assert!(left.map(|entry| entry.file_name()).all(|name| !name.to_string_lossy().starts_with(".tmp")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_site_answers_and_notes_requests() -> Result<()> {
    let log = RequestLog::default();
    let mut site = SampleSite::start(Some(log.clone()))?;
    let addr = site.addr().to_string();
    let (status, index) = get(&addr, "/")?;
    assert_eq!(status, 200);
    assert!(index.contains("/rivers/"));
    assert_eq!(get(&addr, "/old/1")?.0, 301);
    assert_eq!(get(&addr, "/missing")?.0, 404);
    let (_, robots) = get(&addr, "/robots.txt")?;
    assert!(robots.contains(&format!("Sitemap: {}sitemap.xml", site.url())));
    let (_, cafe) = get(&addr, "/cafe")?;
    assert!(cafe.contains("caf\u{fffd}"), "latin-1 is no utf-8: {cafe}");
    site.stop().await;
    assert!(get(&addr, "/").is_err());
    let log = log.lock().expect("nobody panics with it");
    let paths: Vec<&str> = log.iter().map(|(_, path)| path.as_str()).collect();
    assert_eq!(paths, ["/", "/old/1", "/missing", "/robots.txt", "/cafe"]);
    Ok(())
}

#[test]
fn a_directory_is_locked_once() -> Result<()> {
    let dir = open_dir()?;
    let lock = lock_dir(dir.path())?;
    let err = lock_dir(dir.path()).expect_err("locked");
    let text = format!("{err:#}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    drop(lock);
    lock_dir(dir.path())?;
    Ok(())
}

/// A directory that the account of Postgres may enter when the tests run as root.
fn open_dir() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    assert!(Path::new("/proc/self").exists(), "stale servers are found in /proc");
    Ok(dir)
}

fn port(url: &str) -> Result<u16> {
    url::Url::parse(url)?.port().context("no port")
}

/// The answer as words; lists are joined.
async fn redis_command(url: &str, words: &[&str]) -> Result<String> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let answer: redis::Value = command.query_async(&mut connection).await?;
    match answer {
        redis::Value::Array(_) | redis::Value::Map(_) => Ok(redis::from_redis_value::<Vec<String>>(answer)?.join(" ")),
        single => Ok(redis::from_redis_value(single)?),
    }
}

async fn postgres_client(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of the first row, or nothing.
async fn postgres_value(url: &str, statement: &str) -> Result<String> {
    let messages = postgres_client(url).await?.simple_query(statement).await?;
    let value = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(value.unwrap_or_default())
}

/// Status and text of a GET on a connection of its own.
fn get(addr: &str, path: &str) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect(addr)?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).context("no status line")?;
    Ok((status.parse()?, text))
}
