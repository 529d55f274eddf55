//! What proves that somebody knows a key.

use super::Cause;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

pub(super) const TAG: usize = 32;
pub(super) type Tag = [u8; TAG];
pub(super) type Nonce = [u8; 32];

/// A key for HMAC-SHA256.
#[derive(Clone)]
pub(super) struct Key(Hmac<Sha256>);

impl Key {
    pub fn new(bytes: &[u8]) -> Self {
        Self(Hmac::new_from_slice(bytes).expect("HMAC takes keys of any size"))
    }

    /// The tag of the parts one after the other. Only the last may be of a size that varies, or two messages could have
    /// the same bytes.
    pub fn tag(&self, parts: &[&[u8]]) -> Tag {
        self.over(parts).finalize().into_bytes().into()
    }

    /// Whether a tag is of these parts, in a time that does not tell where it differs.
    pub fn verifies(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        self.over(parts).verify_slice(tag).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
}

/// A number that has never been used before.
///
/// # Errors
/// [`Cause::Random`] if the system has none.
pub(super) fn nonce() -> Result<Nonce, Cause> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(|error| Cause::Random(error.to_string()))?;
    Ok(nonce)
}
