//! The kernels under the emulator's checker: nothing may race, and nothing unwritten be read, in any schedule; and the checker
//! finds what is taken away from them. Once in a build of everything: emulated kernels are the same with the feature `cuda`.
#![cfg(not(feature = "cuda"))]

#[path = "../common/low_latency.rs"]
#[allow(dead_code, reason = "a part of it")]
mod batches;
mod cases;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "a part of it")]
mod common;
mod defects;
mod mutants;
mod schedules;

use common::input;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};

/// Does something with each item, on as many threads as there are cores.
fn on_all_cores<'a, T: Sync, R: Send>(items: &'a [T], each: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = each(item);
                    results.lock().unwrap().push(result);
                }
            });
        }
    });
    results.into_inner().unwrap()
}
