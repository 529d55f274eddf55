//! The model's figures as JSON.

use crate::scale::settings::{MODES, Settings};
use crate::scale::tables::{logical_gbs, mode_name};
use crate::scale::time::{Payload, Resource};
use crate::scale::validation::checks;
use serde_json::{Map, Value, json};

/// All estimates and checks; times in µs.
pub fn json(settings: &Settings) -> Result<String, serde_json::Error> {
    let mut estimates = Vec::new();
    for mode in MODES {
        for &ranks in &settings.ranks {
            for (gating, name) in settings.gatings() {
                for payload in Payload::ALL {
                    let estimate = settings.estimate(ranks, gating, payload, mode);
                    let times: Map<String, Value> = Resource::ALL
                        .iter()
                        .map(|&each| (each.name().to_string(), json!(estimate.time(each))))
                        .collect();
                    estimates.push(json!({
                        "mode": mode_name(mode),
                        "ranks": ranks,
                        "experts_from": name,
                        "operation": payload.name(),
                        "token_nodes": estimate.token_nodes,
                        "token_ranks": estimate.token_ranks,
                        "nic_bytes": estimate.nic_bytes,
                        "nvlink_bytes": estimate.nvlink_bytes,
                        "writes": estimate.commands,
                        "us": times,
                        "fixed_us": estimate.fixed,
                        "total_us": estimate.total(),
                        "logical_gbs": logical_gbs(settings, payload, mode, &estimate),
                        "longest": estimate.bottleneck().name(),
                        "million_writes_per_s_needed": estimate.posts_needed(),
                    }));
                }
            }
        }
    }
    let checks: Vec<Value> = checks()
        .iter()
        .map(|check| {
            json!({
                "source": check.row.source.name(),
                "ranks": check.row.work.ranks,
                "tokens": check.row.work.tokens,
                "operation": check.row.work.payload.name(),
                "measured_us": check.measured,
                "model_us": check.estimate.total(),
                "error": check.error(),
                "fitted": check.row.fitted,
            })
        })
        .collect();
    serde_json::to_string_pretty(&json!({ "estimates": estimates, "checks": checks }))
}
