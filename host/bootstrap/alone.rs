//! A group of one process.

use super::{Bootstrap, MESSAGE_BYTES, check_entry};
use crate::Error;
use std::time::Duration;

/// The bootstrap of a process that is alone.
///
/// ```
/// use tokenrail::bootstrap::{Alone, Bootstrap};
/// let all = Alone.all_gather(b"me", "names", std::time::Duration::from_secs(1))?;
/// assert_eq!(all, [b"me"]);
/// # Ok::<(), tokenrail::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Bootstrap for Alone {
    fn process(&self) -> u32 {
        0
    }

    fn processes(&self) -> u32 {
        1
    }

    fn all_gather(&self, bytes: &[u8], _: &'static str, _: Duration) -> Result<Vec<Vec<u8>>, Error> {
        // What does not work with others is not to work here either.
        check_entry(bytes, MESSAGE_BYTES)?;
        Ok(vec![bytes.to_vec()])
    }
}
