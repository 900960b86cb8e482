//! The robots.txt of hosts, parsed and kept at hand, within a bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dodo_common::model::robots::Robots;

/// Hosts whose file is kept.
const HOSTS_MAX: usize = 20_000;
/// What all of them take, bytes. A host can write a file that takes twenty times its size, and one site has as many hosts as
/// it likes.
const BYTES_MAX: usize = 32 << 20;

/// By the name of the host, with the version of its row.
#[derive(Default)]
pub struct KeptRobots(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    hosts: HashMap<String, (i64, Arc<Robots>)>,
    bytes: usize,
}

impl KeptRobots {
    pub fn get(&self, host: &str, version: i64) -> Option<Arc<Robots>> {
        let kept = self.0.lock().expect("no panic under this lock");
        kept.hosts.get(host).filter(|(known, _)| *known == version).map(|(_, robots)| Arc::clone(robots))
    }

    /// Forgets all others where they are too many: they are read again from the rows of their hosts.
    pub fn keep(&self, host: &str, version: i64, robots: &Arc<Robots>) {
        let bytes = host.len() + robots.bytes();
        let mut kept = self.0.lock().expect("no panic under this lock");
        if kept.hosts.len() >= HOSTS_MAX || kept.bytes + bytes > BYTES_MAX {
            *kept = Kept::default();
        }
        // One that takes the place of another counts beside it, until all are forgotten.
        kept.bytes += bytes;
        kept.hosts.insert(host.to_owned(), (version, Arc::clone(robots)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_version_that_it_was_given() {
        let kept = KeptRobots::default();
        kept.keep("http://a.example", 2, &Arc::default());
        assert!(kept.get("http://a.example", 2).is_some());
        assert!(kept.get("http://a.example", 3).is_none() && kept.get("http://b.example", 2).is_none());
    }

    #[test]
    fn large_files_push_out_the_others() {
        let kept = KeptRobots::default();
        let body = ["user-agent: *\n", &"allow:\n".repeat(70_000)].concat();
        let large = Arc::new(Robots::parse(body.as_bytes()));
        for n in 0..100 {
            kept.keep(&format!("http://{n}.evil.example"), 1, &large);
        }
        let left = (0..100).filter(|n| kept.get(&format!("http://{n}.evil.example"), 1).is_some()).count();
        assert!((1..=BYTES_MAX / large.bytes()).contains(&left), "{left} of {} bytes each", large.bytes());
        assert!(kept.get("http://99.evil.example", 1).is_some(), "the last one is kept");
    }
}
