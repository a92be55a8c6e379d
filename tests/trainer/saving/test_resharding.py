"""What no other sharding reads is refused; what is read is tested in parallel/test_sharding.py, by two processes."""

import pytest

from stages.contract import UserError
from stages.trainer.saving.resharding import ResumesAnySharding


def test_deepspeeds_checkpoint_is_refused_without_deepspeed(tmp_path):
    (tmp_path / "checkpoint-40" / "global_step40").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoint-40 was written by DeepSpeed, for several processes"):
        ResumesAnySharding()._load_from_checkpoint(str(tmp_path / "checkpoint-40"))
