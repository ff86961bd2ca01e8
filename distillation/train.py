"""Training that can be stopped and taken up again: seeded, averaged, recorded."""

from __future__ import annotations

import copy
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from distillation import charts
from distillation.batches import Batch, Mixture
from distillation.losses import distilled, flagged, labelled
from distillation.models import channels_last


@dataclass(frozen=True)
class Plan:
    """What one run does. `minutes`, where given, ends the schedule early: whichever of steps and time comes first.

    average: decay of the running average of the weights (0.998 was too slow for runs of a few thousand steps); gentle:
    share of looks that are hardly changed.
    """

    name: str
    steps: int
    seed: int = 1
    rate: float = 2e-3
    minutes: float | None = None
    threads: int = 2
    save_every: int = 200
    average: float = 0.99
    gentle: float = 0.0


def teacher_loss(model: nn.Module, batch: Batch) -> Tensor:
    return labelled(_masks(model, batch)[0], batch.target, batch.weight, batch.complete)


def student_loss(model: nn.Module, batch: Batch) -> Tensor:
    masks, flags = _masks(model, batch)
    loss = labelled(masks, batch.target, batch.weight, batch.complete) + 0.5 * flagged(
        flags, batch.flags, batch.flag_weight
    )
    return loss + distilled(masks, batch.soft, batch.taught, batch.complete) if bool(batch.taught.any()) else loss


def _masks(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        answer = model(batch.image.contiguous(memory_format=torch.channels_last))
    masks, flags = answer[:2] if isinstance(answer, tuple) else (answer, answer)
    return masks.float(), flags.float()


def fit(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], mixture: Mixture, plan: Plan, folder: Path
) -> nn.Module:
    """Trains `model` and returns the running average of its weights, in evaluation mode.

    `folder` receives `checkpoint.pt` (taken up where it exists), `average.pt` and `run.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.threads)
    model = channels_last(model).train()
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=1e-4)
    step, spent, curve = _resume(folder, model, average, optimiser)
    began = time.monotonic() - spent
    shown = (TextColumn(plan.name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*shown, TimeRemainingColumn(), refresh_per_second=0.5) as bar:
        task = bar.add_task(plan.name, total=plan.steps, completed=step, loss="")
        for batch in mixture.stream(step, plan.steps):
            elapsed = time.monotonic() - began
            done = max(step / plan.steps, elapsed / (60 * plan.minutes) if plan.minutes else 0.0)
            if done >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = plan.rate * _schedule(done, step)
            value = loss(model, batch)
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            step += 1
            _blend(average, model, min(plan.average, step / (step + 10)))
            curve.append(round(float(value.detach()), 4))
            bar.update(task, completed=step, loss=f"loss {sum(curve[-50:]) / len(curve[-50:]):.3f}")
            if step % plan.save_every == 0:
                _save(folder, plan, model, average, optimiser, step, elapsed, curve)
                recent = curve[-plan.save_every :]
                bar.console.print(f"{plan.name} step {step} {elapsed:.0f} s loss {sum(recent) / len(recent):.4f}")
    _save(folder, plan, model, average, optimiser, step, time.monotonic() - began, curve)
    return average


def _schedule(done: float, step: int) -> float:
    """Warm-up over 100 steps, then a cosine to a hundredth."""
    return min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


@torch.no_grad()
def _blend(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def _resume(folder: Path, model: nn.Module, average: nn.Module, optimiser: Any) -> tuple[int, float, list[float]]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0, []
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["spent"]), list(state["curve"])


def _save(
    folder: Path,
    plan: Plan,
    model: nn.Module,
    average: nn.Module,
    optimiser: Any,
    step: int,
    spent: float,
    curve: list[float],
) -> None:
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
    held = folder / "checkpoint.part"
    torch.save({**state, "step": step, "spent": spent, "curve": curve}, held)
    held.replace(folder / "checkpoint.pt")
    torch.save(average.state_dict(), folder / "average.pt")
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    run: dict[str, Any] = {"plan": asdict(plan), "steps_done": step, "seconds": round(spent, 1), "machine": machine}
    coarse = [round(sum(curve[i : i + 100]) / len(curve[i : i + 100]), 4) for i in range(0, len(curve), 100)]
    run |= {**source_state(), "loss_per_100_steps": coarse}
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    curves = {"loss": [(100 * (i + 1), value) for i, value in enumerate(coarse)]}
    (folder / "loss.svg").write_text(charts.lines(curves, f"{plan.name}: loss a hundred steps", "step", "loss"))


def source_state() -> dict[str, Any]:
    """The commit that this code is of, and whether it was changed since; empty outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return {}
    home = Path(__file__).parent
    ran = [
        subprocess.run([git, "-C", str(home), *words], capture_output=True, text=True, check=False)
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", str(home)))
    ]
    if ran[0].returncode:
        return {}
    return {"source": {"commit": ran[0].stdout.strip(), "changed": bool(ran[1].stdout.strip())}}
