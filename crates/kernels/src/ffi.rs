//! Compiling a loop for the widest vector instructions of the machine it runs on: the only unsafe code of the
//! crate.
#![allow(unsafe_code)]

/// A loop whose body, all of it inlined, is compiled once per instruction set.
pub(crate) trait Kernel {
    /// What the loop returns.
    type Output;

    /// Runs it. Implementations are `#[inline(always)]`, and so is all they call: what is not
    /// inlined is compiled without vectors.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` with AVX-512, with AVX2 and FMA, or as this program was compiled.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            // SAFETY: the CPU has every feature that `with_avx512` is compiled for.
            return unsafe { with_avx512(kernel) };
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            // SAFETY: the CPU has both features that `with_avx2` is compiled for.
            return unsafe { with_avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512dq") && has!("avx512bw") && has!("avx512vl") && has!("fma")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
