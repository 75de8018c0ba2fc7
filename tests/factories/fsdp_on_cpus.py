"""`run_segmentation.py` with FSDP2 over processes on the CPU, for tests.

accelerate scatters on accelerators alone (`AcceleratorState.__init__` asks for the kind of device) and leaves models
whole on CPUs without a word; torch itself scatters over any devices.
"""

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

import run_segmentation
from cli_utils import run_cli
from training.trainer import SegmentationTrainer

make_state, evaluate = AcceleratorState.__init__, SegmentationTrainer.evaluate


def state_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    make_state(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:  # as on GPUs
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def evaluate_and_tell(self, *args, **kwargs):
    parameters = list(self.model.parameters())
    print(sum(isinstance(one, DTensor) for one in parameters), "of", len(parameters), "parameters are scattered")
    return evaluate(self, *args, **kwargs)


AcceleratorState.__init__, SegmentationTrainer.evaluate = state_with_fsdp, evaluate_and_tell
run_cli(run_segmentation.main)
