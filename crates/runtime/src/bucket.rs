use std::time::Duration;

use tokio::time::Instant;

/// How many at once, and how long until there may be one more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) refill: Duration,
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Bucket {
        Bucket { tokens: rate.burst, at: now }
    }

    fn tokens(&self, rate: Rate, now: Instant) -> f64 {
        let gained = now.duration_since(self.at).as_secs_f64() / rate.refill.as_secs_f64();
        (self.tokens + gained).min(rate.burst)
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let tokens = self.tokens(rate, now);
        let taken = tokens >= 1.0;
        *self = Bucket { tokens: if taken { tokens - 1.0 } else { tokens }, at: now };
        taken
    }

    /// Whether it is as if it had never been used.
    pub(crate) fn is_full(&self, rate: Rate, now: Instant) -> bool {
        self.tokens(rate, now) >= rate.burst
    }

    /// How long until there is a token.
    pub(crate) fn wait(&self, rate: Rate, now: Instant) -> Duration {
        rate.refill.mul_f64((1.0 - self.tokens(rate, now)).max(0.0))
    }

    /// When it was last used.
    pub(crate) fn used(&self) -> Instant {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_and_then_one_each_refill() {
        let rate = Rate { burst: 25.0, refill: Duration::from_secs(300) };
        let start = Instant::now();
        let mut bucket = Bucket::full(rate, start);
        assert_eq!((0..40).filter(|_| bucket.take(rate, start)).count(), 25);
        assert_eq!(bucket.wait(rate, start), rate.refill);
        assert!(!bucket.take(rate, start + rate.refill / 2));
        assert!(bucket.take(rate, start + rate.refill));
        assert!(!bucket.take(rate, start + rate.refill));
        assert!(!bucket.is_full(rate, start + rate.refill * 25));
        assert!(bucket.is_full(rate, start + rate.refill * 27));
    }
}
