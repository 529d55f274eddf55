//! `tokenrail proxy`: how fast commands go from kernels through the ring and the proxy to a fabric.

use crate::choices::BackendArgs;
use clap::Args;
use std::error::Error;
use tokenrail::fabric::ProxySpeed;

/// What to measure on.
#[derive(Args, Debug)]
pub struct ProxyArgs {
    #[command(flatten)]
    pub backend: BackendArgs,
    /// The core that the proxy stays on [default: where the system puts it]
    #[arg(long)]
    pub core: Option<usize>,
    /// Repetitions
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
}

/// Measures and prints; true.
///
/// # Errors
/// Devices that are not usable, or commands that did not all come.
pub fn proxy(args: &ProxyArgs) -> Result<bool, Box<dyn Error>> {
    let backend = args.backend.open(0)?;
    let millions = |rate: f64| if rate.is_nan() { "–".into() } else { format!("{:.1}", rate / 1e6) };
    println!("commands      taken, M/s  posted, M/s  round trip, µs  most waiting");
    let line = |what: &str, speed: ProxySpeed| {
        let trip = speed.round_trip_ns / 1e3;
        let trip = if trip.is_nan() { "–".into() } else { format!("{trip:.2}") };
        let (taken, posted) = (millions(speed.taken_per_s), millions(speed.posted_per_s));
        println!("{what:12}  {taken:>10}  {posted:>11}  {trip:>14}  {:>12}", speed.high_water);
    };
    for _ in 0..args.repeat {
        line("by the host", ProxySpeed::of_host()?);
        line("by a kernel", ProxySpeed::measure(&backend, args.core)?);
    }
    Ok(true)
}
