//! Jobs that have stepped aside: no proxy of their region may be used now, and others of their hosts go on meanwhile.

use std::collections::{HashMap, VecDeque};

use dodo_common::db::schedule::DueJob;

use crate::frontier::exits::Region;
use crate::frontier::flow::FlowId;

/// The first job of a flow that may not leave by its region. It stands for all of that region there: they are left in the
/// schedule.
#[derive(Debug)]
pub struct Aside {
    pub region: Region,
    pub job: DueJob,
}

/// The flows of such jobs, region by region, in the order in which they stepped aside.
#[derive(Debug, Default)]
pub struct Asides {
    regions: HashMap<Region, VecDeque<FlowId>>,
}

impl Asides {
    pub fn push(&mut self, region: Region, flow: FlowId) {
        self.regions.entry(region).or_default().push_back(flow);
    }

    pub fn regions(&self) -> Vec<Region> {
        self.regions.keys().cloned().collect()
    }

    /// The flow that has waited longest for a region; it may have gone meanwhile.
    pub fn take(&mut self, region: &Region) -> Option<FlowId> {
        let flows = self.regions.get_mut(region)?;
        let flow = flows.pop_front();
        if flows.is_empty() {
            self.regions.remove(region);
        }
        flow
    }

    pub fn clear(&mut self) {
        self.regions.clear();
    }
}
