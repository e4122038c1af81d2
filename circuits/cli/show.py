"""Results at the terminal, as tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from circuits.attribute import Attribution
    from circuits.direct import DirectEffects
    from circuits.features import FeatureBank
    from circuits.patch import PatchResult
    from circuits.saes import Fidelity

console = Console()


def escaped(text: str) -> str:
    """Text in which brackets are not taken for markup."""
    return text.replace("[", r"\[")


def print_patch(result: PatchResult) -> None:
    """Where the effect sits and where it moves, as tables."""
    from circuits.patch import assess

    record = result.record
    ability = assess(
        np.array(record["logit_difference_clean"]), np.array(record["logit_difference_corrupted"])
    )
    console.print(result.headline(), style="bold", highlight=False, markup=False)
    console.print(
        f"logit difference clean {interval(ability.clean)}, corrupted "
        f"{interval(ability.corrupted)}, gap {interval(ability.gap)}; {ability.ordered:.0%} "
        f"ordered right, {ability.flipped:.0%} flip",
        highlight=False,
        markup=False,
    )
    _print_forced(record)
    if not record["resumed"]:
        console.print("Full forwards were used: resuming did not agree.", style="yellow")
    _print_where(result)
    _print_moves(result)
    console.print(f"Sign: {record['sign_convention']}.", style="dim", highlight=False, markup=False)


def print_loud(record: dict[str, Any]) -> None:
    """The lines that must not be missed: of a forced run, and of SAEs that erase the contrast."""
    _print_forced(record)
    kept = record.get("saes_keep")
    if kept and kept["gate"]:
        console.print(kept["gate"], style="bold red", highlight=False, markup=False)


def _print_forced(record: dict[str, Any]) -> None:
    from circuits.patch.ability import forced_line

    line = forced_line(record)
    if line:
        console.print(line, style="bold red", highlight=False, markup=False)


def _print_training(saes: list[dict[str, Any]], model: str, prepend_bos: bool) -> None:
    """Say it when SAEs are used otherwise than they were trained."""
    from circuits.models.load import official_name

    def short(name: str) -> str:
        return official_name(name).rsplit("/", 1)[-1].lower()

    names = {str(s["trained_on"]) for s in saes if s["trained_on"]}
    others = sorted(name for name in names if short(name) != short(model))
    if others:
        console.print(
            f"They were trained on {', '.join(others)}, not on this model.", style="yellow"
        )
    if any(s["prepend_bos"] not in (None, prepend_bos) for s in saes):
        console.print(
            "They were trained with a beginning-of-text token, the prompts have none (or the "
            "reverse): see --prepend-bos.",
            style="yellow",
        )


def print_fidelity(result: Fidelity) -> None:
    """What is kept of the contrast, and how well the SAEs reconstruct, as tables."""
    record = result.record
    console.print(
        f"{record['task']} on {record['model']}: what {len(record['saes'])} SAEs keep",
        style="bold",
        highlight=False,
        markup=False,
    )
    _print_training(record["saes"], record["model"], record["prepend_bos"])
    kept = Table(title="Logit differences and contrast kept", box=box.SIMPLE_HEAD)
    for column in ("variant", "LD clean\nLD corrupted", "kept"):
        kept.add_column(column, no_wrap=True)
    for row in result.table().to_dict("records"):
        clean, corrupted, share = (
            escaped(_interval(row[key], row[f"{key}_low"], row[f"{key}_high"], form))
            for key, form in (("clean", "+.2f"), ("corrupted", "+.2f"), ("kept", ".0%"))
        )
        kept.add_row(row["variant"], f"{clean}\n{corrupted}", share)
    console.print(kept)
    quality = Table(title="Reconstruction, first position left out", box=box.SIMPLE_HEAD)
    for column in ("site", "explained variance", "L0", "cross-entropy recovered"):
        quality.add_column(column)
    for row in result.quality.to_dict("records"):
        quality.add_row(
            row["site"],
            f"{row['explained_variance']:.3f}",
            f"{row['l0']:.1f}",
            f"{row['ce_recovered']:.3f}",
        )
    console.print(quality)
    if result.gate:
        console.print(result.gate, style="bold red", highlight=False, markup=False)


def print_attribution(
    result: Attribution, describe: Callable[[str, int], str] | None = None, top: int = 12
) -> None:
    """The strongest nodes, how much the errors carry, and the audit, as tables."""
    from circuits.patch.result import in_brackets

    record = result.record
    console.print(
        f"{record['task']}{in_brackets(record['contrast'])} on {record['model']}: "
        f"{record['attribution']}, {record['direction']}, {record['metric']}"
        f"{', SAE errors removed' if record['errors'] == 'removed' else ''}; "
        "positive is toward clean",
        style="bold",
        highlight=False,
        markup=False,
    )
    _print_forced(record)
    if record["saes"]:
        _print_training(record["saes"], record["model"], result.prompts.prepend_bos)
    pairs = result.prompts.alignments()[0].pairs
    title = f"The strongest nodes, mean effect over {len(pairs)} pairs that line up"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for column in ("site", "token", "node", "effect", "share of gap", "about"):
        table.add_column(column)
    strings = result.prompts.clean_strings[pairs[0]]
    names = {p: n for n, p in result.prompts.positions[pairs[0]].items()}
    for row in result.ranking(top).to_dict("records"):
        place = int(row["position"])
        latent = int(row["latent"])
        node = f"{row['role']} {latent}" if latent >= 0 else str(row["role"])
        about = ""
        if describe and row["role"] == "latent":
            about = describe(str(row["site"]), latent)
        table.add_row(
            str(row["site"]),
            escaped(f"{place} {names.get(place, '')} {_visible(strings[place])}"),
            node,
            escaped(_interval(row["effect"], row["effect_low"], row["effect_high"], "+.3f")),
            f"{row['share']:.0%}",
            escaped(about),
        )
    console.print(table)
    if record["errors"] == "kept":
        _print_errors(result)
    elif record["errors"] == "removed":
        _print_sites(result)
    if record.get("audit"):
        _print_audit(record["audit"], record["attribution"])
    _print_kept(record)


def _visible(token: str) -> str:
    from circuits.plots import visible

    return visible(token)


def _print_errors(result: Attribution) -> None:
    shares: Any = result.error_share()
    table = Table(title="What the SAEs' errors carry", box=box.SIMPLE_HEAD)
    for column in ("site", "errors' share of all effects in size", "sum of effects", "of errors"):
        table.add_column(column)
    for site, part in shares.groupby("site", sort=False, observed=True):
        size = float(part["size"].sum())
        share = (part["size"] * part["error_share"]).sum() / size if size else float("nan")
        table.add_row(
            str(site),
            f"{share:.0%}",
            f"{part['effect'].sum():+.3f}",
            f"{part['error_effect'].sum():+.3f}",
        )
    console.print(table)


def _print_sites(result: Attribution) -> None:
    totals: Any = result.totals("site")
    table = Table(title="Latents alone, without the SAEs' errors", box=box.SIMPLE_HEAD)
    for column in ("site", "sum of effects", "share of the plain model's gap"):
        table.add_column(column)
    for site, effect in zip(totals["site"], totals["effect"], strict=True):
        table.add_row(str(site), f"{effect:+.3f}", f"{effect / result.gap.mean():.0%}")
    console.print(table)


def _print_audit(audit: dict[str, Any], method: str) -> None:
    nodes = len(audit["nodes"])
    own = "its share of the joint change" if method == "ig" else "the node patched by itself"
    console.print(
        f"Audit of {nodes} nodes on {audit['pairs']} pairs, against {own}: Spearman "
        f"{audit['spearman']:.3f}, Pearson {audit['pearson']:.3f}, same sign "
        f"{audit['sign_agreement']:.0%}. Against single-node patching: Spearman "
        f"{audit['spearman_single']:.3f}. Completeness residual "
        f"{audit['completeness_residual']:.1%} (sums over nodes against whole sites, of the "
        "largest whole-site effect).",
        highlight=False,
        markup=False,
    )


def print_direct(result: DirectEffects, top: int = 10) -> None:
    """Components and, with SAEs, their nodes: contributions, direct, total and mediated effect."""
    from circuits.patch.result import in_brackets

    record = result.record
    console.print(
        f"{record['task']}{in_brackets(record['contrast'])} on {record['model']}: direct effects "
        f"at the last token, {record['direction']}, {len(result.prompts)} pairs; positive is "
        "toward clean",
        style="bold",
        highlight=False,
        markup=False,
    )
    _print_forced(record)
    if record["saes"]:
        _print_training(record["saes"], record["model"], result.prompts.prepend_bos)
    _print_effects(result, "Components", ("embedding", "head", "component"), top)
    if record["saes"]:
        _print_effects(result, "SAE nodes", ("latent", "error", "offset"), top)
    capped = ", of logits before the soft cap" if record["soft_cap"] else ""
    console.print(
        f"Contributions add up to the logit difference{capped} (checked: off by at most "
        f"{record['sum_error']:.0e} of its scale). At other tokens every direct effect is 0.",
        highlight=False,
        markup=False,
    )
    _print_kept(record)


def _print_effects(result: DirectEffects, title: str, roles: tuple[str, ...], top: int) -> None:
    from circuits.direct.result import label

    by = "total" if result.has_totals else "exact"
    table = Table(title=f"{title}, the largest by {by} effect, logits", box=box.SIMPLE_HEAD)
    names = ("part", "clean", "corrupted", "direct", "total", "mediated")
    for column in names:
        table.add_column(column, justify="left" if column == "part" else "right")
    for row in result.ranking(top, by=by, roles=roles).to_dict("records"):
        cells = [f"{row[c]:+.3f}" for c in ("clean", "corrupted", "exact", "total", "mediated")]
        where = 3 if by == "total" else 2
        cells[where] = escaped(_interval(row[by], row[f"{by}_low"], row[f"{by}_high"], "+.3f"))
        table.add_row(label(row), *cells)
    console.print(table)


def _print_kept(record: dict[str, Any]) -> None:
    kept = record.get("saes_keep")
    if kept:
        plain = [np.mean(record[f"logit_difference_{run}"]) for run in ("clean", "corrupted")]
        console.print(
            f"Logit difference clean / corrupted: plain model, or SAEs with their errors, "
            f"{plain[0]:+.3f} / {plain[1]:+.3f}; all SAEs without their errors "
            f"{kept['clean']:+.3f} / {kept['corrupted']:+.3f}, which keeps {kept['kept']:.0%} of "
            "the contrast.",
            highlight=False,
            markup=False,
        )
    if kept and kept["gate"]:
        console.print(kept["gate"], style="bold red", highlight=False, markup=False)


def print_bank(bank: FeatureBank) -> None:
    """Per site how active its latents are, and its most active ones."""
    positions = bank.record["positions"]
    what = "examples" if bank.record.get("kind") == "vectors" else "positions"
    if what == "positions":
        told = bank.record["corpus"]["prepend_bos"]
        _print_training(bank.record["saes"], bank.record["model"], told)
    table = Table(title=f"Latents on {positions:,} {what}", box=box.SIMPLE_HEAD)
    for column in ("site", "latents", "dead", "L0"):
        table.add_column(column)
    dead: Any = bank.dead()
    for site in bank.sites:
        part: Any = bank.latents[bank.latents["site"] == str(site)]
        share = f"{dead.loc[str(site), 'dead']} ({dead.loc[str(site), 'share']:.1%})"
        table.add_row(str(site), str(len(part)), share, f"{part['active'].sum() / positions:.1f}")
    console.print(table)
    texts: Any = bank.descriptions()
    shown = Table(title="The strongest latents of each site", box=box.SIMPLE_HEAD)
    for column in ("site", "latent", "rate", "description"):
        shown.add_column(column)
    for site in bank.sites:
        part = bank.latents[bank.latents["site"] == str(site)]
        for index in part.sort_values("max", ascending=False).index[:3]:
            row = bank.latents.loc[index]
            text = escaped(texts.loc[index, "description"])
            shown.add_row(str(site), str(row["latent"]), f"{row['rate']:.2%}", text)
    console.print(shown)


def _print_where(result: PatchResult) -> None:
    from circuits.patch.result import count

    alignment = result.alignments()[0]
    others = len(result.prompts) - len(alignment.pairs)
    what = "share of the gap" if result.value == "share" else f"effect on {result.record['metric']}"
    title = f"Where it sits: {what}, {count(len(alignment.pairs), 'pair')} that line up"
    table = Table(title=title + (f" ({others} others are in the files)" if others else ""))
    reach = "20% and more" if result.value == "share" else "a fifth of the largest"
    for column in ("place", "token", f"layers with {reach}", "strongest", "at layer"):
        table.add_column(column)
    form = ".0%" if result.value == "share" else "+.3f"
    for row in result.where().to_dict("records"):
        table.add_row(
            *_place(result, row["position"], row["head"]),
            str(row["layers"]),
            escaped(_interval(row["peak"], row["low"], row["high"], form)),
            str(row["peak_layer"]),
        )
    console.print(table)


def _place(result: PatchResult, position: Any, head: Any) -> tuple[str, str]:
    import pandas as pd

    from circuits.plots import visible

    if pd.isna(position):
        return ("all positions" if pd.isna(head) else f"head {head}"), ""
    clean, corrupted = result.tokens()[int(position)]
    name = result.named_positions().get(int(position), "")
    token = "|".join(visible(t) for t in clean[:3]) + ("|…" if len(clean) > 3 else "")
    if clean != corrupted:
        token += " / " + "|".join(visible(t) for t in corrupted[:3])
    where = f"{position} {name}".strip()
    return (where if pd.isna(head) else f"{where}, head {head}"), escaped(token)


def _print_moves(result: PatchResult) -> None:
    moves = result.moves()
    site = result.record["site"]
    for move in moves.to_dict("records"):
        old, new = (_place(result, move[k], None) for k in ("from_position", "to_position"))
        console.print(
            f"Between {site} of layers {move['before']} and {move['after']} it moves from {old[0]} "
            f"({move['from_share_before']:.0%} -> {move['from_share_after']:.0%}) to {new[0]} "
            f"({move['to_share_before']:.0%} -> {move['to_share_after']:.0%}).",
            highlight=False,
            markup=False,
        )


def interval(summary: Any, form: str = "+.2f") -> str:
    """A summary as text, "+0.43 [+0.40, +0.46]"; without brackets where one pair gives none."""
    return _interval(float(summary.value), float(summary.low), float(summary.high), form)


def _interval(value: float, low: float, high: float, form: str) -> str:
    bounds = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{bounds}"
