# What `python -m tools.aot` finds and lets pass, all on NVIDIA GPUs: spills of some registers, and one that is worse.
"""By (architecture, entry, dtype, precision of float32): one text for each launch that has a finding. Any other fails.

All with Triton 3.6, 2026-11-21. Spills of few bytes where the tile is otherwise the best there is: "tf32x3" and
"ieee", which share the tiles of "tf32"; float64, which has no smaller tile; layers that mix ties. One launch Triton
cannot compile, and the backend refuses it. On gfx942 nothing is found.
"""

KNOWN = {
    ("sm_100", "depthwise, contiguous wgrad direct", "bfloat16", ""): ("8 bytes spilled",),
    ("sm_100", "dgrad 3 32x32x32", "float32", "tf32x3"): ("12 bytes spilled",),
    ("sm_100", "fprop_fold 1 32x32x32", "float32", "tf32x3"): ("44 bytes spilled",),
    ("sm_100", "fprop_fold 1 64x64x32", "float32", "ieee"): ("12 bytes spilled",),
    ("sm_100", "fprop_fold 2 32x16x32", "float32", "ieee"): ("48 bytes spilled",),
    ("sm_100", "fprop_fold 2 32x16x32", "float32", "tf32x3"): ("64 bytes spilled",),
    ("sm_100", "fprop_fold 3 32x16x16", "float64", ""): ("208 bytes spilled",),
    ("sm_100", "fprop_fold 3 64x16x16", "float32", "ieee"): ("240 bytes spilled",),
    ("sm_100", "fprop_fold 3 64x32x32", "float16", ""): ("52 bytes spilled",),
    ("sm_100", "mixed dgrad direct", "bfloat16", ""): (
        "does not compile: RuntimeError: PassManager::run failed",
    ),
    ("sm_100", "mixed fprop fold", "bfloat16", ""): ("96 bytes spilled",),
    ("sm_100", "wgrad 0 64x64x32", "float32", "tf32x3"): ("8 bytes spilled",),
    ("sm_100", "wgrad 2 64x32x32", "float32", "ieee"): ("8 bytes spilled",),
    ("sm_80", "7 x 7 stem, C = 3 wgrad fold", "bfloat16", ""): ("24 bytes spilled",),
    ("sm_80", "dgrad 3 32x32x32", "float32", "tf32x3"): ("16 bytes spilled",),
    ("sm_80", "fprop_fold 1 32x32x32", "float32", "tf32x3"): ("40 bytes spilled",),
    ("sm_80", "fprop_fold 1 64x64x32", "float32", "tf32x3"): ("800 bytes spilled",),
    ("sm_80", "fprop_fold 2 32x16x32", "float32", "tf32x3"): ("56 bytes spilled",),
    ("sm_80", "fprop_fold 3 32x16x16", "float64", ""): ("20 bytes spilled",),
    ("sm_80", "fprop_fold 3 64x16x16", "float32", "tf32x3"): ("48 bytes spilled",),
    ("sm_80", "mixed dgrad direct", "bfloat16", ""): ("108 bytes spilled",),
    ("sm_80", "mixed dgrad direct", "float32", "tf32"): ("92 bytes spilled",),
    ("sm_80", "mixed dgrad fold", "float32", "tf32"): ("32 bytes spilled",),
    ("sm_80", "mixed fprop fold", "bfloat16", ""): ("12 bytes spilled",),
    ("sm_80", "octuple, mixed fprop fold", "float32", "tf32"): ("24 bytes spilled",),
    ("sm_80", "odd channels dgrad direct", "bfloat16", ""): ("4 bytes spilled",),
    ("sm_80", "odd channels wgrad fold", "bfloat16", ""): ("8 bytes spilled",),
    ("sm_80", "wgrad 2 32x32x32", "float32", "tf32x3"): ("4 bytes spilled",),
    ("sm_90", "dgrad 3 32x32x32", "float32", "ieee"): ("12 bytes spilled",),
    ("sm_90", "dgrad 3 32x32x32", "float32", "tf32x3"): ("16 bytes spilled",),
    ("sm_90", "fprop_fold 1 32x32x32", "float32", "tf32x3"): ("32 bytes spilled",),
    ("sm_90", "fprop_fold 2 32x16x16", "float64", ""): ("64 bytes spilled",),
    ("sm_90", "fprop_fold 2 32x16x32", "float32", "tf32x3"): ("84 bytes spilled",),
    ("sm_90", "fprop_fold 3 32x16x16", "float64", ""): ("388 bytes spilled",),
    ("sm_90", "fprop_fold 3 64x16x16", "float32", "tf32x3"): ("40 bytes spilled",),
    ("sm_90", "mixed fprop fold", "bfloat16", ""): ("60 bytes spilled",),
    ("sm_90", "odd channels dgrad direct", "float32", "tf32"): ("4 bytes spilled",),
    ("sm_90", "wgrad 2 64x32x32", "float32", "ieee"): ("4 bytes spilled",),
}
