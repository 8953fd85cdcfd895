"""θ⁰ of a checkpoint in half precision takes half the memory, and not a bit of training changes."""

import pytest
import tiny
import torch

from hf_sft import L2SP, Mixout, TransferTrainer, exact_copy


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_what_half_precision_holds_is_kept_in_it(kind):
    value = torch.randn(300, 300).to(kind).float()
    kept = exact_copy.exact_copy(value)
    assert kept.element_size() == 2
    assert torch.equal(kept.float(), value)
    assert kept.data_ptr() != value.data_ptr()


@pytest.mark.parametrize("changed", [1e-3, 1 + 2**-20])
def test_one_value_that_it_does_not_hold_keeps_all_in_float32(changed):
    value = torch.ones(300, 300)
    value[-1, -1] = changed
    kept = exact_copy.exact_copy(value)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, value)


def test_other_types_and_small_tensors_are_copied_as_they_are():
    for value in (torch.ones(3), torch.ones(300, 300, dtype=torch.float64)):
        kept = exact_copy.exact_copy(value)
        assert kept.dtype == value.dtype
        assert kept.data_ptr() != value.data_ptr()


@pytest.mark.parametrize(
    "penalty",
    [L2SP(lambda_=0.05), L2SP(lambda_=3.0, apply="proximal"), Mixout(p=0.5)],
    ids=["gradient", "proximal", "mixout"],
)
def test_training_is_that_of_a_whole_copy(penalty, tmp_path, monkeypatch):
    outcomes = []
    for least in (1, 10**9):
        monkeypatch.setattr(exact_copy, "LEAST", least)
        model = tiny.bert()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))
        args = tiny.arguments(tmp_path, num_train_epochs=2, learning_rate=0.01)
        fresh = ["classifier.weight", "classifier.bias"]
        trainer = TransferTrainer(
            model, args, train_dataset=tiny.texts(24), penalty=penalty, fresh=fresh
        )
        trainer.train()
        kinds = {copy.dtype for copy in trainer.starting_point.copies.values()}
        assert kinds == {torch.bfloat16 if least == 1 else torch.float32}
        outcomes.append((tiny.weights(model), trainer.starting_point.distance(model)))
    assert tiny.different(outcomes[0][0], outcomes[1][0]) == []
    assert outcomes[0][1] == outcomes[1][1]
