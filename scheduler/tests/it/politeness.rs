//! 300 virtual hosts on shared addresses: spacing and concurrency, judged by the server's own log.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use dodo_scheduler::local::free_port;
use serde_json::json;

use crate::cluster::Cluster;
use crate::judge;
use crate::web::Web;

const HOSTS: usize = 300;
const PAGES: usize = 3;
const DELAY: Duration = Duration::from_millis(200);
/// Fewer addresses than hosts: several hosts share a clock.
const ADDRESSES: u8 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_addresses_are_never_hurried() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let port = free_port()?;
    let addresses: Vec<Ipv4Addr> = (1..=ADDRESSES).map(|n| Ipv4Addr::new(127, 0, 2, n)).collect();
    let names: Vec<String> = (0..HOSTS).map(|n| format!("h{n}.test:{port}")).collect();
    let web = Web::virtual_hosts(&names, PAGES, Duration::from_millis(3), &addresses, port).await?;
    let resolve: Vec<String> =
        (0..HOSTS).map(|n| format!("h{n}.test={}", addresses[n % usize::from(ADDRESSES)])).collect();
    cluster.worker_env.push(("DODO_RESOLVE".to_owned(), resolve.join(",")));
    cluster.open(&names);
    let _scheduler = cluster.scheduler().await?;
    let mut workers = (0..4).map(|_| cluster.worker()).collect::<Result<Vec<_>>>()?;
    let body =
        json!({ "urls": web.seeds(), "scope": "any", "delay_ms": DELAY.as_millis() as u64, "host_concurrency": 1 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    // A hand-over in the middle: the clocks of what the killed worker held start at its loss.
    cluster.wait_finished(&dispatch, 200).await?;
    workers[0].kill();
    cluster.wait_done(&dispatch, Duration::from_secs(90)).await?;
    let hits = web.hits();
    judge::complete(&cluster, &web, &dispatch).await?;
    let hosts: HashSet<&String> = hits.iter().map(|hit| &hit.host).collect();
    assert_eq!(hosts.len(), HOSTS);
    judge::polite(&hits, DELAY, |hit| hit.host.clone())?;
    judge::polite(&hits, DELAY, |hit| hit.address.clone())
}
