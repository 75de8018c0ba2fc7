"""What lies in an output folder already."""

import json

from training.checkpoints import newest_checkpoint


def test_newest_checkpoint_passes_over_interrupted_ones(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    for step, content in ((9, json.dumps({"global_step": 9})), (10, json.dumps({"global_step": 10})), (11, '{"glo')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content)
    (tmp_path / "checkpoint-12").mkdir()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
