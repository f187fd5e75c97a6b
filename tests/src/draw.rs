//! Random numbers for simulations in tests and examples: the same from one seed, everywhere.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Draw(u64);

impl Draw {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Draw {
        Draw(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform on (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma with a whole parameter: a sum of exponentials.
    pub fn gamma(&mut self, k: u32) -> f64 {
        (0..k).map(|_| -self.unit().ln()).sum()
    }

    /// Beta with whole parameters.
    pub fn beta(&mut self, a: u32, b: u32) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        x / (x + y)
    }

    /// A place, each with its probability.
    pub fn place(&mut self, probabilities: &[f64]) -> usize {
        let mut left = self.unit() * probabilities.iter().sum::<f64>();
        for (place, p) in probabilities.iter().enumerate() {
            left -= p;
            if left < 0.0 {
                return place;
            }
        }
        probabilities.len().saturating_sub(1)
    }
}
