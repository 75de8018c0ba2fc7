"""Training on a Hub dataset while it is being read: `--streaming`.

    data = load_data(args, max_eval_samples=500)        # of `data_utils`, from `data.streams`
    train_dataset = StreamingDataset(data.stream, class_map, TrainTransform(protocol), judge_example, seed=42)

Training images are prepared as they are drawn, and judged by the function that judges whole datasets.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import IterableDataset
from PIL import Image

from cli_utils import count_of
from data.augmentation import TrainTransform
from data.classes import ClassMap
from data.image_files import EIGHT_BITS, StoredFile, decode_image, upright_rgb
from data.preparation import PairRecord, prepare_one
from data.streams import read_rows, with_bytes

# Rows held back to be drawn from at random: files, not decoded, so some 100 MB of photos.
SHUFFLE_BUFFER = 500
# Stands for an example that is thrown away.
SKIPPED = {"pixel_values": torch.empty(0), "labels": torch.empty(0, dtype=torch.uint8), "name": ""}


class StreamingDataset(torch.utils.data.IterableDataset):
    """Endless training examples, "pixel_values", "labels" and "name" as those of `data_utils.SegmentationDataset`.

    The readers, which are the workers of all processes, share every pass: an image comes once, whatever the number of
    files and readers. As far as the files can be dealt out evenly each reader has its own; readers that have to share
    files go through the same shuffled rows and take turns, so they also read, and do not decode, what the others take.
    Nobody knows how many images a file holds, so a reader whose files hold fewer than those of others is through
    sooner, and begins its next pass while they are at this one.

    Order and random transforms are a function of seed, pass, position in it and the numbers of readers and files. The
    Trainer sees one epoch of `--max_steps`, so that resuming skips the right batches: it throws them away, so they are
    empty, see `skip_first`.

    Args:
        stream: of `data.streams.open_streams`.
        transform: draws a training example, as in `data_utils.SegmentationDataset`.
        judge: raises UserError for an example that cannot be used, `checks.judge.judge_example`.
        buffer_size: rows from which the next is drawn.

    Raises (while iterating):
        UserError: an image or mask that cannot be used, by name; or the stream breaks off.
    """

    def __init__(
        self,
        stream: IterableDataset,
        class_map: ClassMap,
        transform: TrainTransform,
        judge: Callable[[PairRecord, ClassMap], None],
        seed: int = 0,
        buffer_size: int = SHUFFLE_BUFFER,
    ):
        self.stream = stream
        self.class_map = class_map
        self.transform = transform
        self.judge = judge
        self.seed = seed
        self.buffer_size = buffer_size
        self.first_pass = 0
        self.process, self.num_processes = 0, 1
        self.skipped_batches, self.batch_size = 0, 1

    def share_with(self, process: int, num_processes: int) -> None:
        """From now on this is the part of one of several processes."""
        self.process, self.num_processes = process, num_processes

    def skip_first(self, batches: int, batch_size: int) -> None:
        """The first batches of a process's data loader are empty from now on, and the others what they were. For a run
        that goes on: of the passes that it has behind it the first and the last are read, and nothing is decoded."""
        self.skipped_batches, self.batch_size = batches, batch_size

    def describe_sharing(self, workers: int) -> str:
        """One line on how the files are dealt out. workers: of each process."""
        files, readers = self.stream.num_shards, max(1, workers) * self.num_processes
        sharing = readers // math.gcd(files, readers)
        line = f"streaming from {count_of(files, 'file')} with {count_of(readers, 'reader')}"
        if sharing == 1:
            return f"{line}, each with files of its own"
        return (
            f"{line}: {sharing} at a time share files, so each row is fetched {sharing} times and decoded once; with "
            f"files by multiples of {readers}, or another --dataloader_num_workers, it would be fetched once"
        )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the pass with which iteration starts."""
        self.first_pass = epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        of_process, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader, readers = self.process * workers + of_process, self.num_processes * workers
        # The workers of a process make its batches in turn.
        to_skip = self.batch_size * len(range(of_process, self.skipped_batches, workers))
        # As many groups of readers as get the same number of files each; those of a group take turns.
        groups = math.gcd(self.stream.num_shards, readers)
        group, turn, turns = reader % groups, reader // groups, readers // groups
        stream = self.stream.shard(groups, group, contiguous=False) if groups > 1 else self.stream
        seen = 0  # in all passes, so that nobody has an image more than the others at the end of each
        rows_of_pass = None
        for number in itertools.count(self.first_pass):
            if to_skip and rows_of_pass:
                own = len(range((turn - seen) % turns, rows_of_pass, turns))
                if own <= to_skip:
                    yield from itertools.repeat(SKIPPED, own)
                    to_skip, seen = to_skip - own, seen + rows_of_pass
                    continue
            # Not `IterableDataset.set_epoch`, whose number all workers share.
            order = int(np.random.default_rng([self.seed, number]).integers(2**32))
            position = -1
            # `iter` alone does not deal out files among the workers by itself, and leave some without any.
            rows = stream.shuffle(seed=order, buffer_size=self.buffer_size).iter(batch_size=1)
            for position, row in enumerate(read_rows(rows)):
                if (seen + position) % turns != turn:
                    continue
                if to_skip:
                    to_skip -= 1
                    yield SKIPPED
                    continue
                row = {name: with_bytes(file) for name, (file,) in row.items()}
                name = f"row {position} of pass {number} (worker {reader})"
                if row["image"] and row["image"]["path"]:
                    name = Path(row["image"]["path"]).stem
                image, label = self._decode(row, name)
                rng = np.random.default_rng([self.seed, number, group, position])
                yield self.transform(image, label, rng) | {"name": name}
            if position < 0:  # there is nothing
                return
            rows_of_pass = position + 1
            seen += rows_of_pass

    def _decode(self, row: dict, name: str) -> tuple[Image.Image | torch.Tensor, np.ndarray]:
        """Image, as `data_utils.SegmentationDataset.read` has it, and mask of training ids, uint8 (H, W), decoded and
        checked."""
        image, mask = (StoredFile.of(row[column], name) for column in ("image", "label"))
        protocol = self.transform.protocol
        num_channels, dtype = protocol.num_channels, protocol.image_dtype
        record, label, picture = prepare_one(image, mask, self.class_map, num_channels)
        if label is None:
            self.judge(record, self.class_map)
        if num_channels == 3 and record.image_dtype == dtype == EIGHT_BITS:
            return upright_rgb(picture), label
        return decode_image(image, num_channels, dtype=dtype), label
