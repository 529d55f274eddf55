//! Loops that are written out, so that arrays of registers are only indexed by constants: compilers unroll short loops by
//! themselves, long ones they leave alone, and their arrays then lie in local memory.

/// `unroll!(I in 3 { … })`: the block three times, with `I` as the constants 0, 1 and 2. 2, 3, 4, 5, 8 or 16 times.
macro_rules! unroll {
    ($i:ident in 1 $body:block) => { unroll!(@ $i $body 0) };
    ($i:ident in 2 $body:block) => { unroll!(@ $i $body 0 1) };
    ($i:ident in 3 $body:block) => { unroll!(@ $i $body 0 1 2) };
    ($i:ident in 4 $body:block) => { unroll!(@ $i $body 0 1 2 3) };
    ($i:ident in 5 $body:block) => { unroll!(@ $i $body 0 1 2 3 4) };
    ($i:ident in 8 $body:block) => { unroll!(@ $i $body 0 1 2 3 4 5 6 7) };
    ($i:ident in 16 $body:block) => { unroll!(@ $i $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) };
    (@ $i:ident $body:block $($number:literal)*) => {$(
        // What holds for every number need not for the one that is written here.
        #[allow(clippy::absurd_extreme_comparisons)]
        {
            const $i: usize = $number;
            $body
        }
    )*};
}
pub(crate) use unroll;
