//! What each host may still give a crawl that bounds its hosts.

use std::collections::{HashMap, HashSet};
use std::fmt;

use uuid::Uuid;

use crate::frontier::place::HostId;

/// What a crawl says of each of its hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRules {
    /// Pages of a host in all.
    pub max_pages: Option<i64>,
    /// By so many pages those that say nothing new may outnumber those that do: what is new earns what is not. A calendar
    /// without end comes to its end.
    pub allowance: Option<i64>,
}

/// Which budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Over {
    /// That of the whole crawl.
    Crawl,
    /// The pages of the host.
    Pages { max: i64 },
    /// The host says too little that is new.
    Barren { pages: i64, fresh: i64, allowance: i64 },
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Over::Crawl => f.write_str("its crawl has fetched as many pages as it was allowed"),
            Over::Pages { max } => write!(f, "its host has given its crawl {max} pages, the max_pages_per_host"),
            Over::Barren { pages, fresh, allowance } => write!(
                f,
                "its host says too little that is new: {fresh} of {pages} pages did, and its host_allowance is {allowance}"
            ),
        }
    }
}

/// Whether the budget of a host lets another job go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRoom {
    Some,
    /// What is in flight may use it up, or earn more.
    Later,
    /// What the host has given must be read first.
    Unread,
    /// It is used up.
    None(Over),
}

/// A crawl at a host.
type Key = (Uuid, HostId);

#[derive(Clone, Copy, Debug, Default)]
struct Given {
    /// As far as reports and the last reading tell; never too low.
    pages: i64,
    /// Too high by no more than what was in flight at a takeover, and only until the next reading.
    fresh: i64,
    in_flight: i64,
    /// It was read at all.
    is_read: bool,
    /// It was read while nothing was in flight.
    exact: bool,
}

/// Only crawls with such rules are in here, each at the hosts that are held anyway.
#[derive(Debug, Default)]
pub struct HostBudgets {
    given: HashMap<Key, Given>,
}

impl HostRules {
    fn over(&self, pages: i64, fresh: i64) -> Option<Over> {
        if let Some(max) = self.max_pages.filter(|max| pages >= *max) {
            return Some(Over::Pages { max });
        }
        let barren = |allowance: &i64| (pages - fresh).saturating_sub(fresh) >= *allowance;
        self.allowance.filter(barren).map(|allowance| Over::Barren { pages, fresh, allowance })
    }
}

impl HostBudgets {
    pub fn room(&self, rules: &HostRules, key: Key) -> HostRoom {
        let given = self.given.get(&key).copied().unwrap_or_default();
        if !given.is_read {
            return HostRoom::Unread;
        }
        match rules.over(given.pages, given.fresh) {
            Some(over) if given.exact => HostRoom::None(over),
            Some(_) if given.in_flight <= 0 => HostRoom::Unread,
            Some(_) => HostRoom::Later,
            None if rules.over(given.pages + given.in_flight, given.fresh).is_some() => HostRoom::Later,
            None => HostRoom::Some,
        }
    }

    /// Takes what was read. With jobs in flight it may hold a page whose report is still to come.
    pub fn set(&mut self, key: Key, pages: i64, fresh: i64) {
        let given = self.given.entry(key).or_default();
        if !given.is_read || given.in_flight <= 0 {
            *given = Given { pages, fresh, in_flight: given.in_flight, is_read: true, exact: given.in_flight <= 0 };
        }
    }

    pub fn enter(&mut self, key: Key) {
        let given = self.given.entry(key).or_default();
        given.in_flight += 1;
        given.exact = false;
    }

    /// A job has ended, perhaps as a page, and that perhaps with something new.
    pub fn leave(&mut self, key: Key, page: bool, fresh: bool) {
        if let Some(given) = self.given.get_mut(&key) {
            given.in_flight -= 1;
            given.pages += i64::from(page);
            given.fresh += i64::from(fresh);
        }
    }

    /// Forgets dispatches that are not `open`, but for those with jobs in flight.
    pub fn forget(&mut self, open: &HashSet<Uuid>) {
        self.given.retain(|(dispatch, _), given| given.in_flight > 0 || open.contains(dispatch));
    }

    /// Forgets hosts that are not `held`: they are read again.
    pub fn forget_hosts(&mut self, held: impl Fn(HostId) -> bool) {
        self.given.retain(|(_, host), _| held(*host));
    }

    /// Nothing is in flight any more, and everything is read again.
    pub fn clear(&mut self) {
        self.given.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: HostRules = HostRules { max_pages: Some(3), allowance: None };
    const BARREN: HostRules = HostRules { max_pages: None, allowance: Some(2) };

    #[test]
    fn pages_are_never_exceeded() {
        let (mut budgets, key) = (HostBudgets::default(), (Uuid::now_v7(), HostId::default()));
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Unread);
        budgets.set(key, 1, 0);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Some);
        budgets.enter(key);
        budgets.enter(key);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Later, "one and two in flight");
        budgets.leave(key, false, false);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Some, "that was none");
        budgets.enter(key);
        budgets.leave(key, true, false);
        budgets.set(key, 9, 9);
        budgets.leave(key, true, false);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Unread, "as far as reports tell");
        budgets.set(key, 2, 0);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Some, "one of them was none after all");
        budgets.set(key, 3, 0);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::None(Over::Pages { max: 3 }));
    }

    #[test]
    fn what_is_new_earns_what_is_not() {
        let (mut budgets, key) = (HostBudgets::default(), (Uuid::now_v7(), HostId::default()));
        budgets.set(key, 0, 0);
        let mut pages = 0;
        // Ten that are new, one by one, then a trap.
        while budgets.room(&BARREN, key) == HostRoom::Some {
            budgets.enter(key);
            budgets.leave(key, true, pages < 10);
            pages += 1;
        }
        assert_eq!((pages, budgets.room(&BARREN, key)), (22, HostRoom::Unread), "ten, ten that they earned, and two");
        budgets.set(key, 22, 10);
        let over = Over::Barren { pages: 22, fresh: 10, allowance: 2 };
        assert_eq!(budgets.room(&BARREN, key), HostRoom::None(over));
    }

    #[test]
    fn what_an_earlier_leader_has_issued_counts() {
        let (mut budgets, key) = (HostBudgets::default(), (Uuid::now_v7(), HostId::default()));
        budgets.enter(key);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Unread);
        budgets.set(key, 2, 0);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Later);
        budgets.leave(key, false, false);
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Some);
        budgets.forget(&HashSet::new());
        assert_eq!(budgets.room(&PAGES, key), HostRoom::Unread);
    }
}
