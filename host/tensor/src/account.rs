//! Who pays for memory: every storage is charged to the account current where it was allocated, until
//! the storage is freed, and every graph node to the account current where it was recorded.
//!
//! `used_bytes` counts tensor elements. The limit also counts a flat [`NODE_BYTES`] for each live graph
//! node, since a chain of operations on single numbers would otherwise fill the machine unseen. Neither
//! counts handles (whoever hands them out does) or a kernel's scratch space.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What a live graph node counts toward the limit: its own size and that of small tensors it saved.
pub const NODE_BYTES: u64 = 1024;

/// Bytes and graph nodes of one owner. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Account(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    limit: Option<u64>,
    used: AtomicU64,
    peak: AtomicU64,
    nodes: AtomicU64,
    peak_nodes: AtomicU64,
}

thread_local! {
    static CURRENT: RefCell<Option<Account>> = const { RefCell::new(None) };
}

impl Account {
    /// An account with nothing charged; `None` means no limit. The limit holds for elements and graph nodes
    /// together (see the module).
    pub fn new(limit_bytes: Option<u64>) -> Account {
        Account(Arc::new(Counts {
            limit: limit_bytes,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            nodes: AtomicU64::new(0),
            peak_nodes: AtomicU64::new(0),
        }))
    }

    /// Bytes charged now.
    pub fn used_bytes(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most bytes charged at any time since creation or [`reset_peak`](Account::reset_peak).
    pub fn peak_bytes(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Sets the peak to the bytes charged now.
    pub fn reset_peak(&self) {
        self.0.peak.store(self.used_bytes(), Ordering::Relaxed);
    }

    /// Graph nodes that still hold their gradient rule (leaves are not counted).
    pub fn live_nodes(&self) -> u64 {
        self.0.nodes.load(Ordering::Relaxed)
    }

    /// The most graph nodes alive at any time since creation.
    pub fn peak_nodes(&self) -> u64 {
        self.0.peak_nodes.load(Ordering::Relaxed)
    }

    /// Makes this the current thread's account until the returned scope is dropped.
    pub fn enter(&self) -> AccountScope {
        AccountScope {
            previous: swap(Some(self.clone())),
            _on_this_thread: std::marker::PhantomData,
        }
    }

    /// The current thread's account.
    pub fn current() -> Option<Account> {
        CURRENT.with(|c| c.borrow().clone())
    }
}

fn swap(next: Option<Account>) -> Option<Account> {
    CURRENT.with(|c| c.replace(next))
}

/// Restores the thread's previous account when dropped.
#[must_use = "the account is current only while the scope lives"]
pub struct AccountScope {
    previous: Option<Account>,
    _on_this_thread: std::marker::PhantomData<*const ()>,
}

impl AccountScope {
    /// A scope with this account, or with none.
    pub(crate) fn of(account: Option<Account>) -> AccountScope {
        AccountScope {
            previous: swap(account),
            _on_this_thread: std::marker::PhantomData,
        }
    }
}

impl Drop for AccountScope {
    fn drop(&mut self) {
        swap(self.previous.take());
    }
}

/// Bytes charged to an account; given back on drop.
///
/// A storage that is used again keeps the account it was last charged to, so that charging it to the same one
/// needs no second pointer to it.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    account: Option<Account>,
    bytes: u64,
}

impl Charge {
    /// Gives back what was charged and charges the current account, or refuses and has charged nothing.
    pub(crate) fn renew(&mut self, op: &'static str, bytes: u64) -> Result<()> {
        self.give_back();
        CURRENT.with(|current| {
            let current = current.borrow();
            let same = match (&self.account, &*current) {
                (Some(Account(own)), Some(Account(other))) => Arc::ptr_eq(own, other),
                (None, None) => true,
                _ => false,
            };
            if !same {
                self.account.clone_from(&current);
            }
        });
        if let Some(Account(counts)) = &self.account {
            counts.take(op, bytes)?;
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Gives the bytes back; the account stays known.
    pub(crate) fn give_back(&mut self) {
        if let Some(Account(counts)) = &self.account
            && self.bytes != 0
        {
            counts.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        self.bytes = 0;
    }
}

impl Counts {
    fn take(&self, op: &'static str, bytes: u64) -> Result<()> {
        let graph = self
            .nodes
            .load(Ordering::Relaxed)
            .saturating_mul(NODE_BYTES);
        let limit = self.limit.unwrap_or(u64::MAX);
        let charged = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let next = used.checked_add(bytes)?;
                (next.saturating_add(graph) <= limit).then_some(next)
            });
        match charged {
            Ok(used) => {
                // Written only where it grows: a steady state reads it.
                if used + bytes > self.peak.load(Ordering::Relaxed) {
                    self.peak.fetch_max(used + bytes, Ordering::Relaxed);
                }
                Ok(())
            }
            Err(used) => Err(Error::Budget {
                op,
                asked: bytes,
                used: used.saturating_add(graph),
                limit,
            }),
        }
    }
}

/// Refuses what could never be charged, because it alone is above the current account's limit; charges
/// nothing.
pub(crate) fn fits_limit(op: &'static str, bytes: u64) -> Result<()> {
    match Account::current() {
        Some(account) => match account.0.limit {
            Some(limit) if bytes > limit => Err(Error::Budget {
                op,
                asked: bytes,
                used: account.used_bytes(),
                limit,
            }),
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// One live graph node on an account's count; taken off on drop.
#[derive(Debug)]
pub(crate) struct NodeCount(Option<Account>);

impl NodeCount {
    pub(crate) fn take() -> NodeCount {
        let account = Account::current();
        if let Some(Account(counts)) = &account {
            let nodes = counts.nodes.fetch_add(1, Ordering::Relaxed) + 1;
            // Written only where it grows, as the peak of bytes.
            if nodes > counts.peak_nodes.load(Ordering::Relaxed) {
                counts.peak_nodes.fetch_max(nodes, Ordering::Relaxed);
            }
        }
        NodeCount(account)
    }
}

impl Drop for NodeCount {
    fn drop(&mut self) {
        if let Some(Account(counts)) = &self.0 {
            counts.nodes.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
