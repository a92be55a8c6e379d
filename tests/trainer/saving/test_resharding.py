"""What no other sharding reads is refused; what is read is tested in parallel/test_sharding.py, by two processes."""

import pytest

from stages.contract import UserError
from stages.trainer.saving.resharding import refuse_other_writer


@pytest.mark.parametrize("written", [True, False])
def test_checkpoint_of_deepspeed_is_resumed_by_it_alone(tmp_path, written):
    (tmp_path / ("global_step40" if written else "model")).mkdir()
    refuse_other_writer(tmp_path, deepspeed=written)
    with pytest.raises(UserError, match="was written by DeepSpeed" if written else "was not written by DeepSpeed"):
        refuse_other_writer(tmp_path, deepspeed=not written)
