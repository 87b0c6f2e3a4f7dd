# Runs the tiny family of a stand-in module that a test has built: `python run.py MODULE`.
"""A process of its own, since Python keeps one module of a name."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cuda_host


def main() -> None:
    """Fails where a result is wrong or an access outside of the tensors is not seen."""
    module = cuda_host.load(Path(sys.argv[1]))
    for code, dtype in enumerate((torch.bfloat16, torch.float16, torch.float32)):
        x, y = torch.arange(100).to(dtype), torch.empty(100, dtype=dtype)
        params = module.TinyParams(dtype=code, count=100, scale=2)
        module.clear_buffers()
        module.register_buffer(x.data_ptr(), x.nbytes, False)
        module.register_buffer(y.data_ptr(), y.nbytes, True)
        assert params.launch(x.data_ptr(), 0, 0, y.data_ptr(), 0, 0, 0) == ""
        assert torch.equal(y, 2 * x)
        module.register_buffer(x.data_ptr(), x.nbytes - 2, False)
        assert "outside of the registered buffers" in params.launch(x.data_ptr(), 0, 0, y.data_ptr(), 0, 0, 0)
    assert module.counts()["launches"] == 6


main()
