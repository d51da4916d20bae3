"""The one loop: early stopping, best weights, checkpoints, and the same bytes after a kill."""

import importlib
import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from noise2next import models
from noise2next.config import TrainerConfig
from noise2next.data.queries import Queries
from noise2next.errors import UserError
from noise2next.models.base import ClosedForm, ModelConfig, Trainable
from noise2next.models.diffrec import DiffRec
from noise2next.nn.losses import row_error
from noise2next.training import checkpoint, device, trainer
from noise2next.training.fit import fit
from noise2next.training.seeding import epoch_order, seed_everything
from noise2next.training.trainer import Trainer

CPU = torch.device("cpu")


def histories(users=64, items=30, length=6):
    draw = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.randperm(items, generator=draw)[:length] for _ in range(users)]).flatten()
    indptr = torch.arange(0, users * length + 1, length)
    return Queries(indptr, chosen, torch.ones(users * length), None, torch.arange(users), items)


def diffrec(items=30):
    return DiffRec(DiffRec.Config(steps=3, hidden=(8,)), items)


def learn(
    model, folder, validate=lambda model: {"recall@20": 0.1}, seed=1, on_epoch=lambda *_: None, budget=None, **choices
):
    config = TrainerConfig(**{"epochs": 3, "batch_size": 20, "checkpoint_seconds": 0, **choices})
    place = folder / "checkpoint"
    return fit(model, histories(), config, validate, place, seed, CPU, on_epoch, progress=False, budget_seconds=budget)


class Counter(Trainable):
    """Remembers what the loop does; its weight grows by about the learning rate a step."""

    Config = ModelConfig

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.heard = []

    def score(self, queries):
        raise NotImplementedError

    def loss(self, batch, phase, clock):
        self.heard.append((phase, clock.epoch, clock.batch, len(batch)))
        return {"pull": -self.weight.sum(), "constant": torch.tensor(2.0)}


def test_every_user_comes_once_an_epoch_in_an_order_of_its_own():
    model, seen = diffrec(), []
    for epoch in range(2):
        batches = list(model.batches(histories(), 20, epoch_order(1, epoch)))
        assert [len(one) for one in batches] == [20, 20, 20, 4]
        seen.append(torch.cat([one.keys for one in batches]))
        assert sorted(seen[-1].tolist()) == list(range(64))
    assert not torch.equal(*seen)
    again = torch.cat([one.keys for one in model.batches(histories(), 20, epoch_order(1, 0))])
    assert torch.equal(again, seen[0])


def test_it_stops_when_patience_is_over_and_keeps_the_best_weights(tmp_path):
    metric = iter([0.1, 0.3, 0.3, 0.2, 0.1, 0.9])
    weights = []

    def validate(model):
        weights.append(float(model.weight.detach()))
        return {"recall@20": next(metric)}

    model = Counter()
    report = learn(model, tmp_path, validate, epochs=100, patience=3)
    assert (report.epochs, report.best_epoch, report.metrics) == (5, 2, {"recall@20": 0.3})
    assert report.stopped == "patience"
    assert float(model.weight.detach()) == weights[1] < weights[2]
    assert not model.training


def test_validation_comes_every_few_epochs_and_at_the_end(tmp_path):
    report = learn(Counter(), tmp_path, epochs=7, evaluate_every=3, patience=1)
    assert [record.epoch for record in report.curve if record.metrics] == [3, 6]
    report = learn(Counter(), tmp_path / "other", epochs=7, evaluate_every=3, patience=10)
    assert [record.epoch for record in report.curve if record.metrics] == [3, 6, 7]


def test_the_loop_tells_the_clock_and_the_mean_of_each_term(tmp_path):
    model, heard = Counter(), {}
    report = learn(model, tmp_path, epochs=2, on_epoch=heard.__setitem__)
    assert [one[1:3] for one in model.heard] == [(epoch, 4 * epoch + batch) for epoch in (0, 1) for batch in range(4)]
    assert report.curve[1].loss["constant"] == 2.0
    assert set(heard[2]) == {"loss_pull", "loss_constant", "valid_recall@20", "seconds"}


def test_each_phase_moves_its_own_parameters_only(tmp_path):
    class Two(Counter):
        phases = ("first", "second")

        def __init__(self):
            super().__init__()
            self.other = nn.Parameter(torch.zeros(1))

        def trained_in(self, phase, learning_rate):
            yield {"params": [self.weight if phase == "first" else self.other], "lr": learning_rate}

        def loss(self, batch, phase, clock):
            self.heard.append((phase, float(self.weight.detach()), float(self.other.detach())))
            return {phase: -(self.weight + self.other).sum()}

    model = Two()
    learn(model, tmp_path, epochs=1, learning_rate=0.5)
    moved = [(name, round(a, 3), round(b, 3)) for name, a, b in model.heard[:3]]
    assert moved == [("first", 0, 0), ("second", 0.5, 0), ("first", 0.5, 0.5)]


def test_the_learning_rate_falls_every_few_epochs_and_a_group_may_have_its_own(tmp_path):
    class Slow(Counter):
        def __init__(self):
            super().__init__()
            self.other = nn.Parameter(torch.zeros(1))
            self.places = []

        def trained_in(self, phase, learning_rate):
            yield {"params": [self.weight], "lr": learning_rate}
            yield {"params": [self.other], "lr": learning_rate / 4}

        def loss(self, batch, phase, clock):
            self.places.append((float(self.weight.detach()), float(self.other.detach())))
            return {"pull": -(self.weight + self.other).sum()}

    model = Slow()
    learn(model, tmp_path, epochs=3, batch_size=64, learning_rate=0.5, decay_every=1, decay=0.1)
    assert model.places[1] == pytest.approx((0.5, 0.125), rel=1e-4)
    assert model.places[2] == pytest.approx((0.55, 0.1375), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name(tmp_path):
    class Broken(Counter):
        def loss(self, batch, phase, clock):
            return {"pull": self.weight.sum() * (torch.nan if clock.batch == 5 else 1.0)}

    with pytest.raises(UserError, match=r"epoch 2: the loss 'pull' is nan; lower trainer.learning_rate"):
        learn(Broken(), tmp_path)


def test_a_metric_that_validation_does_not_know_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"trainer.metric: 'recall@7' is not among recall@20"):
        learn(Counter(), tmp_path, metric="recall@7")
    with pytest.raises(UserError, match="no user to judge"):
        learn(Counter(), tmp_path, lambda model: {"recall@20": float("nan")})


def test_a_closed_form_is_solved_once_and_judged(tmp_path):
    class Mean(ClosedForm):
        Config = ModelConfig
        solved = 0

        def solve(self, train):
            self.solved += 1

        def score(self, queries):
            raise NotImplementedError

    model = Mean()
    report = learn(model, tmp_path)
    assert (model.solved, report.epochs, report.metrics) == (1, 0, {"recall@20": 0.1})
    assert report.stopped == "solved"
    assert report.within(None)


def test_equal_seeds_give_equal_weights_and_other_seeds_others(tmp_path):
    states = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        seed_everything(seed)
        model = diffrec()
        learn(model, tmp_path / name, seed=seed)
        states[name] = model.state_dict()
    assert all(torch.equal(states["a"][name], states["b"][name]) for name in states["a"])
    assert not torch.equal(states["a"]["denoiser.decode.weight"], states["c"]["denoiser.decode.weight"])


def test_a_line_of_the_log_comes_with_each_epoch(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="noise2next.training.trainer"):
        learn(Counter(), tmp_path, epochs=2)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["epoch 1", "epoch 2"]


# --- checkpoints ------------------------------------------------------------------------------------------------------

TRAINED = {  # every trainable model, small
    "diffrec.DiffRec": {"steps": 3, "hidden": [8, 16]},
    "l_diffrec.LDiffRec": {"steps": 3, "hidden": [8], "encoder": [8], "clusters": 2},
    "mult_vae.MultVAE": {"hidden": [16], "latent_size": 8},
    "mult_dae.MultDAE": {},
    "light_gcn.LightGCN": {"embedding_size": 8, "layers": 2},
    "sas_rec.SASRec": {"embedding_size": 8, "blocks": 1, "max_length": 5},
    "gru4rec.GRU4Rec": {"embedding_size": 8, "hidden": 8, "max_length": 5},
    "diffurec.DiffuRec": {"embedding_size": 8, "blocks": 1, "heads": 2, "steps": 4, "max_length": 5},
    "dnr.DNR": {"embedding_size": 8, "blocks": 1, "steps": 4, "max_length": 5, "seeds": 2},
}
KILLS = 3  # of each, at random moments; a run may end before the last of them

KILLED_AGAIN_AND_AGAIN = """
    import json, logging, os, random, signal, sys, time
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from noise2next.config import TrainerConfig, Variant
    from noise2next.data.queries import Queries
    from noise2next.models.base import build
    from noise2next.training.fit import fit
    from noise2next.training.seeding import seed_everything

    folder, models, kills = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])

    def train(address, options, name):
        torch.set_num_threads(1)
        logging.basicConfig(level=logging.INFO, filename=folder / f"{name}.log")
        users, items, length = 96, 40, 6
        draw = torch.Generator().manual_seed(0)
        chosen = torch.stack([torch.randperm(items, generator=draw)[:length] for _ in range(users)]).flatten()
        indptr = torch.arange(0, users * length + 1, length)
        data = Queries(indptr, chosen, torch.ones(users * length), None, torch.arange(users), items)
        seed_everything(3)
        inputs = {"user_keys": data.keys, "item_clusters": torch.arange(items) % 2}
        model = build(Variant(model=f"noise2next.models.{address}", options=options), items, inputs)

        def validate(model):  # rises and falls, and draws numbers of its own
            torch.rand(3)
            model.begin_scoring()
            with torch.no_grad():
                return {"recall@20": float(model.score(data.select(torch.arange(9))).std().sin())}

        config = TrainerConfig(epochs=10, batch_size=20, patience=10, checkpoint_seconds=0.002)
        fit(model, data, config, validate, folder / name / "checkpoint", 3, torch.device("cpu"), lambda *_: None, False)
        save_file(model.state_dict(), folder / f"{name}.safetensors")

    def child(*what):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                train(*what)
                code = 0
            finally:
                os._exit(code)
        return process

    def saved(name):  # changes with every checkpoint
        return {path.stat().st_ino for path in (folder / name / "checkpoint").glob("?/manifest.json")}

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # what it imports late, imported once for all children
    moments, look = random.Random(5), os.WEXITED | os.WNOHANG | os.WNOWAIT
    for address, options in models.items():
        whole, name, done = f"{address}-whole", f"{address}-killed", 0
        assert os.waitpid(child(address, options, whole), 0)[1] == 0
        for _ in range(kills):
            before, process = saved(name), child(address, options, name)
            while saved(name) == before and os.waitid(os.P_PID, process, look) is None:
                time.sleep(0.001)
            time.sleep(moments.uniform(0.0, 0.05))
            os.kill(process, signal.SIGKILL)
            done += os.WIFSIGNALED(os.waitpid(process, 0)[1])
        assert os.waitpid(child(address, options, name), 0)[1] == 0
        print(done)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with the weights and the log of each model, trained whole and killed; and how often it was killed."""
    folder = tmp_path_factory.mktemp("killed")
    program = [sys.executable, "-c", textwrap.dedent(KILLED_AGAIN_AND_AGAIN)]
    told = [str(folder), json.dumps(TRAINED), str(KILLS)]
    done = subprocess.run([*program, *told], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(TRAINED, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize("address", TRAINED)
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(killed, address):
    folder, times = killed
    assert times[address] >= 1
    assert "resumed after epoch" in (folder / f"{address}-killed.log").read_text()
    whole = (folder / f"{address}-whole.safetensors").read_bytes()
    assert (folder / f"{address}-killed.safetensors").read_bytes() == whole


def test_every_trainable_model_is_killed_here():
    found = set()
    for path in sorted(Path(models.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"noise2next.models.{path.stem}")
        for name, one in vars(module).items():
            if isinstance(one, type) and issubclass(one, Trainable) and one.__module__ == module.__name__:
                found.add(f"{path.stem}.{name}")
    assert found - {"base.Trainable"} == set(TRAINED)


class Stop(Exception):
    """A stand-in for the end of the process."""


@pytest.mark.parametrize("last", range(1, 13))
def test_a_run_stopped_after_any_batch_resumes_to_the_same_bytes(tmp_path, last, monkeypatch):
    def fresh():
        seed_everything(1)
        return diffrec()

    whole = fresh()
    learn(whole, tmp_path / "whole")
    stopped, heard = fresh(), []
    save = checkpoint.save

    def save_and_stop(place, tensors, progress):
        save(place, tensors, progress)
        heard.append(1)
        if len(heard) == last:
            raise Stop

    monkeypatch.setattr(checkpoint, "save", save_and_stop)
    with pytest.raises(Stop):
        learn(stopped, tmp_path / "stopped")
    monkeypatch.setattr(checkpoint, "save", save)
    torch.rand(100)
    resumed, curve = fresh(), {}
    report = learn(resumed, tmp_path / "stopped", on_epoch=curve.__setitem__)
    assert list(curve) == [1, 2, 3] == [record.epoch for record in report.curve]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def damage(path, how):
    if how == "a bit":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    elif how == "gone":
        path.unlink()
    else:
        path.write_text("{")


@pytest.mark.parametrize("how", ["a bit", "gone", "cut short"])
@pytest.mark.parametrize("file", ["state.safetensors", "progress.json", "manifest.json"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(tmp_path, caplog, file, how):
    def fresh():
        seed_everything(1)
        return diffrec()

    caplog.set_level(logging.INFO)
    whole = fresh()
    learn(whole, tmp_path, epochs=2)  # 10 checkpoints: b holds the ninth, a the tenth
    damage(tmp_path / "checkpoint" / "a" / file, how)
    again = fresh()
    learn(again, tmp_path, epochs=2)
    assert "the checkpoint is damaged" in caplog.text
    assert "resumed after epoch 1 and 4 batches" in caplog.text
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_without_any_whole_checkpoint_training_starts_from_the_beginning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    learn(diffrec(), tmp_path, epochs=1)
    for slot in "ab":
        damage(tmp_path / "checkpoint" / slot / "state.safetensors", "a bit")
    assert learn(diffrec(), tmp_path, epochs=1).epochs == 1
    assert "resumed" not in caplog.text


@pytest.mark.parametrize("change", [{"seed": 2}, {"learning_rate": 0.5}])
def test_a_checkpoint_of_another_run_is_left_out(tmp_path, caplog, change):
    caplog.set_level(logging.INFO)
    model = diffrec()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    learn(model, tmp_path, epochs=1)
    model.load_state_dict(start)
    learn(model, tmp_path, epochs=1, **change)
    assert "a checkpoint of another run" in caplog.text
    assert "resumed" not in caplog.text


def test_a_checkpoint_is_not_written_before_its_time(tmp_path):
    learn(diffrec(), tmp_path, checkpoint_seconds=1000)
    assert not (tmp_path / "checkpoint").exists()


# --- budgets ----------------------------------------------------------------------------------------------------------


def rising_and_falling(model):
    """Draws numbers of its own, as a stochastic model's validation may."""
    torch.rand(3)
    return {"recall@20": float(model.score(histories()).std().sin())}


@pytest.fixture
def clocked(monkeypatch):
    """A batch takes a second, all else no time; an epoch of `histories()` has four batches of 20."""
    clock, step = SimpleNamespace(now=0.0), Trainer._step

    def slow(self, batch):
        clock.now += 1
        step(self, batch)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(Trainer, "_step", slow)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(("batches", "trained"), [(1, 20 / 64), (4, 1.0), (6, 1 + 40 / 64), (16, 4.0)])
def test_a_budget_ends_a_run_after_a_batch_and_a_larger_one_goes_on_to_the_same_bytes(
    tmp_path, clocked, every, batches, trained
):
    def fresh():
        seed_everything(1)
        return diffrec()

    choices = {"epochs": 9, "evaluate_every": every, "checkpoint_seconds": 1000}
    whole, stopped, resumed = fresh(), fresh(), fresh()
    unbroken = learn(whole, tmp_path / "whole", rising_and_falling, **choices)
    heard = []
    first = learn(
        stopped,
        tmp_path / "paused",
        rising_and_falling,
        budget=batches,
        on_epoch=lambda epoch, _: heard.append(epoch),
        **choices,
    )
    assert (first.stopped, first.epochs) == ("budget", int(trained))
    assert first.curve[-1].trained == trained
    assert heard == list(range(1, first.epochs + 1))  # a part of an epoch is not told as one
    assert first.curve[-1].metrics != {}
    assert first.metrics == max((one.metrics for one in first.curve if one.metrics), key=lambda one: one["recall@20"])
    assert not first.within(None)
    assert not first.within(first.seconds + 1)
    assert first.within(first.seconds)
    torch.rand(100)
    second = learn(resumed, tmp_path / "paused", rising_and_falling, **choices)
    assert (second.stopped, unbroken.stopped) == ("epochs", "epochs")
    assert second.within(None)
    shown = [[(one.trained, one.loss, one.metrics) for one in report.curve] for report in (unbroken, second)]
    assert shown[0] == shown[1]
    assert (second.best_epoch, second.metrics) == (unbroken.best_epoch, unbroken.metrics)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_budget_of_nothing_trains_one_batch(tmp_path):
    model = Counter()
    report = learn(model, tmp_path, budget=0, epochs=50)
    assert len(model.heard) == 1
    assert (report.stopped, report.epochs, report.best_epoch) == ("budget", 0, 1)
    assert report.curve[0].told("recall@20").startswith("epoch 0.31, pull ")


def test_a_budget_counts_the_seconds_of_all_resumptions(tmp_path, clocked):
    trained = []
    for budget in (0, 2, 2, 6, 6.5, 8):
        model = Counter()
        report = learn(model, tmp_path, budget=budget, epochs=50)
        assert report.stopped == "budget"
        assert report.seconds == sum(one.seconds for one in report.curve)
        trained.append((len(model.heard), report.trained, report.seconds))
    assert trained == [
        (1, 20 / 64, 1),
        (1, 40 / 64, 2),
        (0, 40 / 64, 2),
        (4, 1 + 40 / 64, 6),
        (1, 1 + 60 / 64, 7),
        (1, 2, 8),
    ]


@pytest.mark.parametrize(("epochs", "ending"), [(9, "budget"), (1, "epochs")])
def test_a_run_killed_in_validation_closes_its_epoch_first_though_its_budget_is_spent(
    tmp_path, clocked, epochs, ending
):
    def killed(model):
        raise Stop

    with pytest.raises(Stop):
        learn(Counter(), tmp_path, killed, budget=4, epochs=epochs)
    model, heard = Counter(), []
    report = learn(model, tmp_path, budget=4, epochs=epochs, on_epoch=lambda epoch, _: heard.append(epoch))
    assert not model.heard
    assert (report.stopped, report.epochs, report.trained, heard) == (ending, 1, 1.0, [1])


# --- device and precision ---------------------------------------------------------------------------------------------


def test_the_chosen_float32_products_are_float32_exact():
    device.use_fast_float32()
    assert device.float32_error() < 1e-5


def test_a_fast_path_that_is_not_exact_is_not_taken(monkeypatch):
    before = torch.get_float32_matmul_precision()
    device.use_fast_float32.cache_clear()
    try:
        torch.set_float32_matmul_precision("highest")
        monkeypatch.setattr(device, "float32_error", lambda: 4e-3)
        assert not device.use_fast_float32()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        device.use_fast_float32.cache_clear()
        torch.set_float32_matmul_precision(before)


_FAULTS = """
import resource
from pathlib import Path
import torch
from noise2next.config import TrainerConfig
from noise2next.data.queries import Queries
from noise2next.models.popularity import MostPop
from noise2next.training.device import keep_freed_memory
from noise2next.training.fit import fit

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

one, cpu = torch.tensor([0]), torch.device("cpu")
unasked = faults()
train = Queries(torch.tensor([0, 1]), one, torch.ones(1), None, one, 1)
fit(MostPop(MostPop.Config(), 1), train, TrainerConfig(), lambda _: {}, Path("none"), 1, cpu, lambda *_: None, False)
faults()
print(unasked, faults(), keep_freed_memory(cpu))
"""

_PEAK = """
import torch
from noise2next.training import device

def peak():
    device.forget_peak_memory(cpu)
    return device.peak_memory_mb(cpu)

cpu = torch.device("cpu")
device.keep_freed_memory(cpu)
before = peak()
torch.ones(1 << 26)
print(before, device.peak_memory_mb(cpu), peak())
"""


def test_where_a_model_was_fitted_a_tensor_takes_the_pages_of_the_one_before_it():
    """Of four tensors of 64 MB, in a process of its own, since what malloc is told holds for all of it."""
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    unasked, asked, kept = done.stdout.split()
    if kept == "False":
        pytest.skip("this system's malloc is not the GNU C library's")
    assert 4 * int(asked) < int(unasked)  # 0 of 65,536; fewer where the system has huge pages


def test_a_new_peak_does_not_count_what_was_freed():
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    before, held, after = map(float, done.stdout.split())
    assert held > before + 250
    assert after < before + 50


def test_a_device_that_is_not_there_is_refused_in_a_sentence():
    assert device.choose_device("cpu") == CPU
    with pytest.raises(UserError, match="'gpu!' is no device"):
        device.choose_device("gpu!")
    with pytest.raises(UserError, match="'cuda:99' is not on this machine"):
        device.choose_device("cuda:99")


def test_bfloat16_is_refused_where_a_processor_has_to_imitate_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert device.matmul_dtype("auto", CPU) == torch.float32
    with pytest.raises(UserError, match="no bfloat16 products"):
        device.matmul_dtype("bfloat16", CPU)


def test_bfloat16_products_leave_weights_noise_and_loss_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    seen, products = {}, set()

    class Watched(DiffRec):
        def _errors(self, x0, t, noise):
            found = super()._errors(x0, t, noise)
            seen.update(noise=noise.dtype, x0=x0.dtype, errors=found.dtype)
            return found

        def loss(self, batch, phase, clock):
            found = super().loss(batch, phase, clock)
            seen["loss"] = found["denoising"].dtype
            return found

    def watched_error(output, target):
        products.add(output.dtype)
        return row_error(output, target)

    monkeypatch.setattr("noise2next.models.diffrec.row_error", watched_error)
    model = Watched(DiffRec.Config(steps=3, hidden=(8,)), 30)
    projected = model.denoiser.project
    monkeypatch.setattr(model.denoiser, "project", lambda x: seen.update(x_t=x.dtype) or projected(x))
    report = learn(model, tmp_path, epochs=1, precision="bfloat16")
    assert report.precision == "bfloat16"
    assert products == {torch.bfloat16}
    assert seen == dict.fromkeys(("noise", "x0", "x_t", "errors", "loss"), torch.float32)
    assert all(one.dtype == torch.float32 for one in model.parameters())
    assert np.isfinite(report.curve[0].loss["denoising"])
    products.clear()
    learn(diffrec(), tmp_path / "plain", epochs=1, precision="float32")
    assert products == {torch.float32}


def test_the_trainer_is_the_only_one_that_steps():
    """Held by reading: no other module of the package calls backward, step or zero_grad."""
    from pathlib import Path

    import noise2next

    root = Path(noise2next.__file__).parent
    callers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(f".{verb}(" in path.read_text() for verb in ("backward", "step", "zero_grad"))
    }
    assert callers == {Path(sys.modules[Trainer.__module__].__file__).relative_to(root).as_posix()}
