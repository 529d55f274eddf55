// The order in which tokens of several sources are gone through, by lane: device/src/throughput/across/walk.rs.
#pragma once
#include "../../wire.cuh"

namespace throughput::across {

// Tokens of a source: the first, and the one past the last.
struct Unit {
    u32 source, first, end;
};

// This warp's share of the tokens of `sources` sources, of which each has as many as `tokens` says: single ones or, if
// `CHUNKED`, whole chunks.
template <typename TokensOf, bool CHUNKED>
struct Walk {
    TokensOf tokens_of;
    u32 sources;
    u32 lanes;
    u32 lane;
    u32 source;
    // Counted over the tokens of this source on this lane.
    u32 at;
    u32 step;

    DEVICE Walk(TokensOf tokens_of, u32 sources, u32 lanes, u32 worker, u32 workers)
        : tokens_of(tokens_of), sources(sources), lanes(at_least_one(lanes)), lane(0), source(0), at(worker),
          step(workers) {}

    // Gives the next unit; false if there is none.
    DEVICE bool next(Unit &unit) {
        while (lane < lanes) {
            if (source == sources) {
                source = 0;
                lane++;
                continue;
            }
            u32 tokens = tokens_of(source);
            u32 chunks = div_ceil(tokens, CHUNK);
            u32 here = div_ceil(chunks > lane ? chunks - lane : 0, lanes);
            u32 units = CHUNKED ? here : here * CHUNK;
            if (at >= units) {
                at -= units;
                source++;
                continue;
            }
            u32 now = at;
            at += step;
            u32 chunk = CHUNKED ? now : now / CHUNK;
            u32 first = (chunk * lanes + lane) * CHUNK + (CHUNKED ? 0 : now % CHUNK);
            if (first < tokens) {
                unit = {source, first, CHUNKED ? least(tokens, first + CHUNK) : first + 1};
                return true;
            }
        }
        return false;
    }
};

}  // namespace throughput::across
