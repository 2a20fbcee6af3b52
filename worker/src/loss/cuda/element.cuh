// What the epilogues compute for one pair. Plain C++: NVRTC compiles it for the device, and a test
// compiles it for the host and compares it with f64.

#if defined(__CUDACC_RTC__)
#define RINGMASTER_HD __device__ __forceinline__
#else
#include <cmath>
#include <cstring>
#define RINGMASTER_HD inline
#endif

// A pair's weight w = B·∂L/∂s, and its term of the loss.
struct Term {
    float weight;
    float log_sigmoid;
};

// Sigmoid loss (arXiv:2303.15343, §3.2) of a pair with logit s; z = +1 if it is a positive, else −1.
//
// weight = σ(s) − [positive] = −z σ(−z s), log_sigmoid = log σ(z s). Everything comes from
// e = exp(−|s|) in (0, 1], which cannot overflow; a positive's weight is −σ(−s) rather than σ(s) − 1,
// which would lose all digits once s is large.
RINGMASTER_HD Term siglip_term(float s, bool positive) {
    const float e = expf(-fabsf(s));
    const float larger = 1.0f / (1.0f + e); // σ(|s|)
    const float smaller = e * larger;       // σ(−|s|)
    const float zs = positive ? s : -s;
    // σ(−z s)
    const float miss = zs >= 0.0f ? smaller : larger;
    Term term;
    term.weight = positive ? -miss : miss;
    term.log_sigmoid = -(fmaxf(-zs, 0.0f) + log1pf(e));
    return term;
}

// InfoNCE of a pair with logit s: weight = 2B·∂L/∂s = exp(s − row) + exp(s − column) − 2·[positive],
// where row and column are the log-sum-exps of the pair's row and column.
RINGMASTER_HD float infonce_weight(float s, float row, float column, bool positive) {
    const float sum = expf(s - row) + expf(s - column);
    return positive ? sum - 2.0f : sum;
}

// The bits of the bf16 nearest to x, ties to even; a NaN stays one.
RINGMASTER_HD unsigned short to_bf16(float x) {
    unsigned int bits;
#if defined(__CUDACC_RTC__)
    bits = __float_as_uint(x);
#else
    std::memcpy(&bits, &x, sizeof bits);
#endif
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((bits >> 16) | 0x40u);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (unsigned short)(bits >> 16);
}
