//! The 64 steps of MD5 (RFC 1321, section 3.4), for the vectors of any instruction set.

/// Hashes one block in each lane of `$groups` vectors, which hide each other's latency.
///
/// `$state` is `[[V; 4]; $groups]` and `$words` is `[[V; 16]; $groups]`, the message words
/// of all lanes. The functions `add`, `rotate`, `splat`, `f`, `g`, `h` and `i` are those in
/// scope where the macro is used, so that the compiler sees them with the CPU's features.
macro_rules! steps {
    ($state:ident, $words:ident, $groups:expr) => {{
        let before = $state;
        // Each group has its a, b, c and d in the places 0 to 3.
        macro_rules! step {
            ($f:ident, $a:literal, $b:literal, $c:literal, $d:literal, $k:literal, $s:literal, $t:literal) => {
                let constant = splat($t);
                let mut group = 0;
                while group < $groups {
                    let v = &mut $state[group];
                    let sum = add(add(v[$a], constant), $words[group][$k]);
                    let sum = add(sum, $f(v[$b], v[$c], v[$d]));
                    v[$a] = add(rotate::<$s, { 32 - $s }>(sum), v[$b]);
                    group += 1;
                }
            };
        }
        step!(f, 0, 1, 2, 3, 0, 7, 0xd76a_a478);
        step!(f, 3, 0, 1, 2, 1, 12, 0xe8c7_b756);
        step!(f, 2, 3, 0, 1, 2, 17, 0x2420_70db);
        step!(f, 1, 2, 3, 0, 3, 22, 0xc1bd_ceee);
        step!(f, 0, 1, 2, 3, 4, 7, 0xf57c_0faf);
        step!(f, 3, 0, 1, 2, 5, 12, 0x4787_c62a);
        step!(f, 2, 3, 0, 1, 6, 17, 0xa830_4613);
        step!(f, 1, 2, 3, 0, 7, 22, 0xfd46_9501);
        step!(f, 0, 1, 2, 3, 8, 7, 0x6980_98d8);
        step!(f, 3, 0, 1, 2, 9, 12, 0x8b44_f7af);
        step!(f, 2, 3, 0, 1, 10, 17, 0xffff_5bb1);
        step!(f, 1, 2, 3, 0, 11, 22, 0x895c_d7be);
        step!(f, 0, 1, 2, 3, 12, 7, 0x6b90_1122);
        step!(f, 3, 0, 1, 2, 13, 12, 0xfd98_7193);
        step!(f, 2, 3, 0, 1, 14, 17, 0xa679_438e);
        step!(f, 1, 2, 3, 0, 15, 22, 0x49b4_0821);
        step!(g, 0, 1, 2, 3, 1, 5, 0xf61e_2562);
        step!(g, 3, 0, 1, 2, 6, 9, 0xc040_b340);
        step!(g, 2, 3, 0, 1, 11, 14, 0x265e_5a51);
        step!(g, 1, 2, 3, 0, 0, 20, 0xe9b6_c7aa);
        step!(g, 0, 1, 2, 3, 5, 5, 0xd62f_105d);
        step!(g, 3, 0, 1, 2, 10, 9, 0x0244_1453);
        step!(g, 2, 3, 0, 1, 15, 14, 0xd8a1_e681);
        step!(g, 1, 2, 3, 0, 4, 20, 0xe7d3_fbc8);
        step!(g, 0, 1, 2, 3, 9, 5, 0x21e1_cde6);
        step!(g, 3, 0, 1, 2, 14, 9, 0xc337_07d6);
        step!(g, 2, 3, 0, 1, 3, 14, 0xf4d5_0d87);
        step!(g, 1, 2, 3, 0, 8, 20, 0x455a_14ed);
        step!(g, 0, 1, 2, 3, 13, 5, 0xa9e3_e905);
        step!(g, 3, 0, 1, 2, 2, 9, 0xfcef_a3f8);
        step!(g, 2, 3, 0, 1, 7, 14, 0x676f_02d9);
        step!(g, 1, 2, 3, 0, 12, 20, 0x8d2a_4c8a);
        step!(h, 0, 1, 2, 3, 5, 4, 0xfffa_3942);
        step!(h, 3, 0, 1, 2, 8, 11, 0x8771_f681);
        step!(h, 2, 3, 0, 1, 11, 16, 0x6d9d_6122);
        step!(h, 1, 2, 3, 0, 14, 23, 0xfde5_380c);
        step!(h, 0, 1, 2, 3, 1, 4, 0xa4be_ea44);
        step!(h, 3, 0, 1, 2, 4, 11, 0x4bde_cfa9);
        step!(h, 2, 3, 0, 1, 7, 16, 0xf6bb_4b60);
        step!(h, 1, 2, 3, 0, 10, 23, 0xbebf_bc70);
        step!(h, 0, 1, 2, 3, 13, 4, 0x289b_7ec6);
        step!(h, 3, 0, 1, 2, 0, 11, 0xeaa1_27fa);
        step!(h, 2, 3, 0, 1, 3, 16, 0xd4ef_3085);
        step!(h, 1, 2, 3, 0, 6, 23, 0x0488_1d05);
        step!(h, 0, 1, 2, 3, 9, 4, 0xd9d4_d039);
        step!(h, 3, 0, 1, 2, 12, 11, 0xe6db_99e5);
        step!(h, 2, 3, 0, 1, 15, 16, 0x1fa2_7cf8);
        step!(h, 1, 2, 3, 0, 2, 23, 0xc4ac_5665);
        step!(i, 0, 1, 2, 3, 0, 6, 0xf429_2244);
        step!(i, 3, 0, 1, 2, 7, 10, 0x432a_ff97);
        step!(i, 2, 3, 0, 1, 14, 15, 0xab94_23a7);
        step!(i, 1, 2, 3, 0, 5, 21, 0xfc93_a039);
        step!(i, 0, 1, 2, 3, 12, 6, 0x655b_59c3);
        step!(i, 3, 0, 1, 2, 3, 10, 0x8f0c_cc92);
        step!(i, 2, 3, 0, 1, 10, 15, 0xffef_f47d);
        step!(i, 1, 2, 3, 0, 1, 21, 0x8584_5dd1);
        step!(i, 0, 1, 2, 3, 8, 6, 0x6fa8_7e4f);
        step!(i, 3, 0, 1, 2, 15, 10, 0xfe2c_e6e0);
        step!(i, 2, 3, 0, 1, 6, 15, 0xa301_4314);
        step!(i, 1, 2, 3, 0, 13, 21, 0x4e08_11a1);
        step!(i, 0, 1, 2, 3, 4, 6, 0xf753_7e82);
        step!(i, 3, 0, 1, 2, 11, 10, 0xbd3a_f235);
        step!(i, 2, 3, 0, 1, 2, 15, 0x2ad7_d2bb);
        step!(i, 1, 2, 3, 0, 9, 21, 0xeb86_d391);
        let mut group = 0;
        while group < $groups {
            let mut n = 0;
            while n < 4 {
                $state[group][n] = add($state[group][n], before[group][n]);
                n += 1;
            }
            group += 1;
        }
    }};
}
