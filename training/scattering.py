"""What FSDP and DeepSpeed need to know of a model whose weights they scatter over the processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config


@contextmanager
def built_whole(args: TrainingArguments) -> Iterator[None]:
    """While the context lasts models are built whole, also where DeepSpeed's ZeRO-3 would build them in pieces, which
    run nowhere but in its engine: a model is tried out before it is trained. The engine scatters it afterwards."""
    # The first is there with --deepspeed, the second where `accelerate launch` brings DeepSpeed.
    config = getattr(args, "hf_deepspeed_config", None) or getattr(args.deepspeed_plugin, "dschf", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def prepare_for_fsdp(model: PreTrainedModel) -> None:
    """Names the modules that are gathered one at a time, in place: the stages or layers that the architecture names,
    whatever class they have by now; where it names none, the whole model is gathered at once.

    accelerate looks for classes of exactly these names, and for the embedding of words, which most models of images
    do not know how to answer.
    """
    names = set(model._no_split_modules or ())
    kinds = {type(module) for module in model.modules()}
    model._no_split_modules = [kind.__name__ for kind in kinds if names & {base.__name__ for base in kind.__mro__}]
    model.get_input_embeddings = _none


def _none() -> None:
    """A function of this module, for models are pickled."""
