//! Turns: flows that may have something to issue. Tenants take turns, and within a tenant its flows do.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::frontier::flow::FlowId;

#[derive(Debug, Default)]
pub struct Turns {
    rings: HashMap<Arc<str>, VecDeque<FlowId>>,
    /// The tenants that have a ring, none of them empty.
    tenants: VecDeque<Arc<str>>,
}

impl Turns {
    /// Behind all others of its tenant; the caller sees to it that it is there once.
    pub fn push(&mut self, tenant: &Arc<str>, id: FlowId) {
        let ring = self.rings.entry(Arc::clone(tenant)).or_default();
        if ring.is_empty() {
            self.tenants.push_back(Arc::clone(tenant));
        }
        ring.push_back(id);
    }

    /// Whose turn it is; a flow may have gone meanwhile.
    pub fn take(&mut self) -> Option<FlowId> {
        let tenant = self.tenants.pop_front()?;
        let ring = self.rings.get_mut(&tenant)?;
        let id = ring.pop_front();
        if ring.is_empty() {
            self.rings.remove(&tenant);
        } else {
            self.tenants.push_back(tenant);
        }
        id
    }

    pub fn clear(&mut self) {
        self.rings.clear();
        self.tenants.clear();
    }
}
