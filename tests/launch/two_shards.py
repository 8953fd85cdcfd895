"""FSDP2 over two CPU processes (gloo): each penalty's steps, what is held, and what is said.

python -m torch.distributed.run --nproc_per_node 2 tests/launch/two_shards.py RESULT_FILE
"""

import sys
import tempfile
from pathlib import Path

import peft
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

from hf_sft import (
    L1SP,
    L2SP,
    SPD,
    Ball,
    FisherSP,
    GroupLassoSP,
    LayerGroups,
    RecAdam,
    TrainLast,
    TransferTrainer,
)
from hf_sft.penalties.lora_adapters import deltas
from hf_sft.penalties.strength import StrengthRule
from hf_sft.shards import parameters
from hf_sft.starting_point import StartingPoint
from hf_sft.training.pull import Pull

BATCH, STEPS = 8, 4
LOGGED = ("loss", "penalty", "grad_norm", "pull_to_gradient", "gradient_drift_cosine", "eval_loss")
FRESH = {"classifier.weight", "classifier.bias"}
WORDS = "bert.embeddings.word_embeddings.weight"
ONE_ROW = "bert.embeddings.token_type_embeddings.weight"  # fewer rows than processes
GREW = {WORDS: tiny.WORDS - 5}  # the last rows, on the second process, are new
PENALTIES = {
    "l2-sp": L2SP(lambda_=0.1, head=0.05),
    "l2-sp-proximal": L2SP(lambda_=0.5, apply="proximal"),
    "l2-sp-rules": L2SP(lambda_=0.1, rules=[StrengthRule(role="bias", **{"lambda": 0.0})]),
    "l1-sp": L1SP(lambda_=0.01),
    "fisher-sp": FisherSP(lambda_=0.1, head=0.05),
    "recadam": RecAdam(alpha=5.0),
    "group-lasso-sp": GroupLassoSP(lambda_=0.01),
    "ball": Ball(radius=0.01),
    "spd": SPD(),
    "none": L2SP(lambda_=0.0),
}
TRAINERS = {
    "l2-sp": {"penalty": L2SP(lambda_=0.1, head=0.05)},
    "frozen-ball": {
        "penalty": [L2SP(lambda_=0.1), Ball(radius=0.01)],
        "freeze": TrainLast(count=1),
    },
    "fisher-sp": {"penalty": FisherSP(lambda_=0.1, samples=8)},  # F is found before it is divided
}


def batch(step, process, processes):
    """The rows of a step that belong to one process."""
    share = BATCH // processes
    rows = tiny.texts(BATCH * STEPS)[BATCH * step + share * process :][:share]
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def train(name, process=0, processes=1, mesh=None):
    """A few steps of SGD with momentum; the weights, Ω and what a step has sent."""
    model = tiny.bert(type_vocab_size=1)
    groups = LayerGroups.of(model, fresh=FRESH)
    start = StartingPoint.of(model, fresh=FRESH, groups=groups, rows=GREW)
    generator = torch.Generator().manual_seed(3)
    start.fisher = {n: torch.rand(t.shape, generator=generator) for n, t in start.copies.items()}
    if mesh is not None:
        for layer in model.bert.encoder.layer:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        start.shard_(model)
    pull = Pull([PENALTIES[name]], model, start, progress=lambda: 0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pull.attach(optimizer)
    for step in range(STEPS):
        model(**batch(step, process, processes)).loss.backward()
        with CommDebugMode() as sent:
            pull.add_gradient_()
            optimizer.step()
        optimizer.zero_grad()
    with CommDebugMode() as told:
        value = pull.value()
    held = sum(t.numel() for t in start.copies.values())
    found = {
        "value": value,
        "distance": start.distance(model, groups),
        "changed": start.changed(model, start.digests),
        "theta0_elements": held,
        "fisher_elements": sum(t.numel() for t in start.fisher.values()),
        "step_sends": counted(sent),
        "value_sends": counted(told),
        "weights": {n: whole(t) for n, t in parameters(model).items()},
    }
    if mesh is not None:
        own = {n: t.to_local() for n, t in parameters(model).items()}
        found["theta_elements"] = sum(own[n].numel() for n in start.copies)
        found["one_row"] = own[ONE_ROW].shape[0], start.copies[ONE_ROW].shape[0]
        found["shapes_differ"] = [n for n in start.copies if start.copies[n].shape != own[n].shape]
    return found


def trained(name, folder, sharded, resume=None, **saving):
    """Six steps of TransferTrainer on 8 rows each, FSDP2 by accelerate or DDP.

    accelerate 1.15 shards on accelerators only, which is the one thing pretended here: that this
    process has another kind of device than the CPU.
    """
    settings = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}}
    args = tiny.arguments(
        folder,
        per_device_train_batch_size=BATCH // 2,
        train_sampling_strategy="sequential",
        eval_strategy="epoch",
        max_grad_norm=0.5,
        **(settings if sharded else {}),
        **{"optim": "sgd", "learning_rate": 0.1, **saving},
    )
    kind = PartialState._shared_state["distributed_type"]
    if sharded:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    try:
        rows, extra = tiny.texts(32), TRAINERS[name]
        trainer = TransferTrainer(
            tiny.bert(), args, train_dataset=rows[:24], eval_dataset=rows[24:], fresh=FRESH, **extra
        )
        assert trainer.accelerator.is_fsdp2 == sharded
        trainer.train(resume_from_checkpoint=resume)
        log = trainer.state.log_history
        theta = parameters(trainer.model)
        return {
            "weights": {n: whole(t) for n, t in theta.items()},
            "log": {k: [e[k] for e in log if k in e] for k in LOGGED},
            "value": trainer.penalty_value(),
            "changed": trainer.starting_point.changed(trainer.model, trainer.frozen),
            "divided": all(isinstance(t, DTensor) for t in theta.values()),
        }
    finally:
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = kind


def resumed(folder):
    """The weights of a sharded training that was saved after 3 of its 6 steps, and from there."""
    saving = {
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    return [
        trained("frozen-ball", folder, True, resume, **saving)["weights"]
        for resume in (None, str(folder / "checkpoint-3"))
    ]


def adapted(mesh=None):
    """The drift of a model with adapters whose B·A is not 0."""
    model = peft.get_peft_model(tiny.bert(), peft.LoraConfig(target_modules=["query"]))
    theta = dict(model.named_parameters())
    fresh = {name for name, parameter in theta.items() if parameter.requires_grad}
    groups, start = LayerGroups.of(model, fresh=fresh), StartingPoint.of(model, fresh=fresh)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name in sorted(fresh):
            theta[name].copy_(torch.randn(theta[name].shape, generator=generator))
    if mesh is not None:
        fully_shard(model, mesh=mesh)
        groups = LayerGroups.of(model, fresh=fresh)  # the same of a model that is divided already
    return start.distance(model, groups, deltas(model))


def counted(mode):
    """How often each collective was called."""
    return {str(call).rsplit(".", 1)[-1]: n for call, n in mode.get_comm_counts().items()}


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    PartialState(cpu=True)  # joins the processes
    mesh, me = init_device_mesh("cpu", (2,)), torch.distributed.get_rank()
    found = {name: train(name, me, 2, mesh) for name in PENALTIES}
    found["adapted"] = adapted(mesh)
    with tempfile.TemporaryDirectory() as folder:
        for name in TRAINERS:
            found |= {
                (name, how): trained(name, folder, how == "fsdp2") for how in ("ddp", "fsdp2")
            }
    found["resumed"] = resumed(Path(sys.argv[1]).parent / "checkpoints")  # of both processes
    both = [None, None]
    torch.distributed.all_gather_object(both, found)
    if me == 0:
        torch.save(both, sys.argv[1])
    torch.distributed.destroy_process_group()
