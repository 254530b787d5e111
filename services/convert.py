"""``vits convert``: other projects' voices and checkpoints, turned into model folders.

Arguments and help stand here; each conversion is imported when it is asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared.arguments import Parser
from shared.errors import UserError
from shared.languages import language_code

_EPILOG = """\
Every conversion writes one folder, whole or not at all: an ordinary Hugging Face VITS model (config.json,
model.safetensors, the tokenizer), with discriminator.safetensors beside it where there is one. 'vits train'
starts from it, 'vits export' makes a voice of it, 'vits say --checkpoint' speaks with it.

Nothing is ever unpickled: .pth and .bin files are read by weights-only loading, and what is more than
weights is refused.

which one do I need?
  an MMS language to fine-tune                     vits convert mms-discriminator --language_code spa --output spa
  G_*.pth and D_*.pth of jaywalnut310/vits or MMS  vits convert vits G_100000.pth --output model
  a model that finetune-hf-vits trained            vits convert finetune-hf-vits ./my-model --output model
  a Piper voice                                    vits convert piper voice.onnx --output model
  one voice that is to become several              vits convert multi-speaker model --speakers ana,luis --output two
"""


def _kind(
    kinds: Any, name: str, run: Callable[[argparse.Namespace], None], *, line: str, about: str, example: str
) -> argparse.ArgumentParser:
    """A conversion's own parser, with what all of them have."""
    parser: argparse.ArgumentParser = kinds.add_parser(
        name,
        help=line,
        description=about,
        epilog=f"examples:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        "--pytorch_dump_folder_path",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the model folder to write; an older model folder of that name is replaced, nothing else is",
    )
    parser.set_defaults(run=run)
    return parser


def _licence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--licence", help="the model's licence, to travel with everything made from it")


def parser() -> argparse.ArgumentParser:
    """The arguments of ``vits convert``."""
    top = Parser(
        prog="vits convert",
        description="Turn another project's voice or checkpoint into a model folder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = top.add_subparsers(dest="kind", required=True, metavar="KIND")
    _add_mms_discriminator(kinds)
    _add_vits(kinds)
    _add_finetune_hf_vits(kinds)
    _add_piper(kinds)
    _add_multi_speaker(kinds)
    return top


def _add_mms_discriminator(kinds: Any) -> None:
    mms = _kind(
        kinds,
        "mms-discriminator",
        _mms_discriminator,
        line="an MMS generator and its original discriminator, to fine-tune from",
        about="Put MMS's discriminator, which only the original checkpoints have, beside the Hugging Face\n"
        "generator. Fine-tuning from both keeps the voice's quality from the first step on.\n\n"
        "Both come from the hub by the language's code, or from files. Codes are ISO 639-3 (spa, not es); a\n"
        "language that MMS has in several scripts or dialects carries one in its code (uig-script_arabic,\n"
        "quc-dialect_north). A code that leaves a choice open is answered with the list to choose from.",
        example="  vits convert mms-discriminator --language_code spa --output mms-tts-spa-train\n"
        "  vits convert mms-discriminator --generator mms-tts-spa --discriminator D_100000.pth --output spa-train",
    )
    mms.add_argument(
        "--language_code",
        metavar="CODE",
        help="fetch facebook/mms-tts-CODE and its D_100000.pth from the hub",
    )
    mms.add_argument(
        "--generator",
        "--generator_checkpoint_path",
        type=Path,
        metavar="FOLDER",
        help="or: a Hugging Face VITS folder",
    )
    mms.add_argument(
        "--discriminator",
        "--checkpoint_path",
        type=Path,
        metavar="FILE",
        help="and: the original D_100000.pth that belongs to it",
    )
    mms.add_argument(
        "--push_to_hub",
        metavar="NAME",
        help="afterwards upload the folder to the hub as NAME; HF_TOKEN in the environment is the token",
    )
    mms.add_argument(
        "--licence",
        help="the generator's licence, where its folder does not say; the hub's models are CC-BY-NC-4.0",
    )


def _mms_discriminator(arguments: argparse.Namespace) -> None:
    files = (arguments.generator, arguments.discriminator)
    if (arguments.language_code is None) == (files == (None, None)) or files.count(None) == 1:
        raise UserError(
            "mms-discriminator: give either --language_code CODE, to fetch both from the hub, or both --generator "
            "FOLDER and --discriminator D_100000.pth."
        )
    from services.training.convert import hub, mms
    from shared.provenance import Provenance

    if arguments.language_code is not None:
        mms.convert_from_hub(arguments.language_code, arguments.output)
    else:
        known = Provenance(licence=arguments.licence) if arguments.licence else None
        mms.convert(*files, arguments.output, provenance=known)
    _say(arguments.output, "generator and discriminator are together")
    if arguments.push_to_hub:
        print(f"pushed to the hub as {hub.push(arguments.output, arguments.push_to_hub)}")


def _add_vits(kinds: Any) -> None:
    vits = _kind(
        kinds,
        "vits",
        _vits,
        line="original VITS checkpoints: G_*.pth, D_*.pth and their config.json",
        about="Convert a checkpoint of original VITS (jaywalnut310/vits) or of MMS's original models, with every\n"
        "part that training needs: posterior encoder, flow, either duration predictor, and the discriminator.\n\n"
        "The vocabulary is looked for in vocab.txt beside the checkpoint, among the symbols in config.json, and,\n"
        "for 178 tokens, in the table of the published English models.",
        example="  vits convert vits pretrained_ljs.pth --config ljs_base.json --output models/ljs\n"
        "  vits convert vits G_100000.pth --discriminator D_100000.pth --language spa --output models/spa",
    )
    vits.add_argument("generator", type=Path, help="the generator's checkpoint, G_*.pth")
    vits.add_argument(
        "--discriminator", type=Path, metavar="FILE", help="the discriminator's checkpoint, D_*.pth"
    )
    vits.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the trainer's config.json (default: the one beside the generator)",
    )
    vits.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="one symbol a line, in the order of their ids"
    )
    vits.add_argument(
        "--phonemize",
        action=argparse.BooleanOptionalAction,
        help="texts become espeak-ng's American English phonemes (default: if trained by english_cleaners2)",
    )
    vits.add_argument(
        "--language", type=language_code, metavar="CODE", help="ISO 639-3, for the tokenizer's configuration"
    )
    vits.add_argument(
        "--speakers", metavar="NAME,…", help="speakers' names by their ids (default: those in config.json)"
    )
    _licence(vits)


def _vits(arguments: argparse.Namespace) -> None:
    from services.training.convert.vits import convert

    notes = convert(
        arguments.generator,
        arguments.output,
        settings=arguments.config,
        discriminator=arguments.discriminator,
        vocabulary=arguments.vocabulary,
        phonemize=arguments.phonemize,
        language=arguments.language,
        speakers=_names(arguments.speakers),
        licence=arguments.licence,
    )
    if arguments.discriminator is None:
        notes.append("without --discriminator, training from it starts with a fresh one")
    _say(arguments.output, "converted, every weight in its place", notes)


def _add_finetune_hf_vits(kinds: Any) -> None:
    ancestor = _kind(
        kinds,
        "finetune-hf-vits",
        _finetune_hf_vits,
        line="a model or checkpoint that finetune-hf-vits trained",
        about="Convert the output folder of finetune-hf-vits, or a checkpoint-N in it: the discriminator comes out\n"
        "of the model's file into its own, weight norm is folded, and its trainer's fields leave config.json.\n"
        "Optimisers and random states stay behind: training from the new folder starts its schedule anew.",
        example="  vits convert finetune-hf-vits ./vits_finetuned_spa --output models/spa\n"
        "  vits convert finetune-hf-vits ./vits_finetuned_spa/checkpoint-500 --output models/spa-500",
    )
    ancestor.add_argument("folder", type=Path, help="its output_dir, or a checkpoint-N folder in it")
    ancestor.add_argument(
        "--without-discriminator",
        action="store_true",
        help="convert the generator alone; training then starts with a fresh discriminator",
    )
    _licence(ancestor)


def _finetune_hf_vits(arguments: argparse.Namespace) -> None:
    from services.training.convert.finetune_hf_vits import convert

    notes = convert(
        arguments.folder,
        arguments.output,
        licence=arguments.licence,
        with_discriminator=not arguments.without_discriminator,
    )
    _say(arguments.output, "converted, every weight in its place", notes)


def _add_piper(kinds: Any) -> None:
    piper = _kind(
        kinds,
        "piper",
        _piper,
        line="a Piper voice (ONNX)",
        about="Turn a Piper ONNX voice into a model folder. The result is compared with ONNX Runtime on the\n"
        "original at zero noise. What Piper leaves out of its files (posterior encoder, discriminator) is\n"
        "initialised afresh; 'vits train' teaches it first.",
        example="  vits convert piper en_US-joe-medium.onnx --output models/joe --espeak-voice es-419",
    )
    piper.add_argument("voice", type=Path, help="the .onnx file; its .onnx.json must be beside it")
    piper.add_argument(
        "--espeak-voice",
        metavar="NAME",
        help="phonemise by another espeak-ng voice than the one in the JSON, to train another language (es-419, de, …)",
    )
    _licence(piper)


def _piper(arguments: argparse.Namespace) -> None:
    from services.export.convert.piper import convert

    difference = convert(
        arguments.voice, arguments.output, espeak_voice=arguments.espeak_voice, licence=arguments.licence
    )
    _say(
        arguments.output,
        f"converted; differs from the original by at most {difference:.1e} at zero noise",
    )


def _add_multi_speaker(kinds: Any) -> None:
    several = _kind(
        kinds,
        "multi-speaker",
        _multi_speaker,
        line="a model of one voice, made ready for several speakers",
        about="Give a model of one voice a table of speakers, or a model of several more of them. A model of one\n"
        "voice sounds the same for every new speaker until it is trained; speakers that a model has keep their\n"
        "voices, and new ones start beside the mean of the old.",
        example="  vits convert multi-speaker mms-tts-spa --speakers ana,luis --output spa-two\n"
        "  vits convert multi-speaker spa-two --speakers eva --output spa-three",
    )
    several.add_argument("folder", type=Path, help="the model folder")
    several.add_argument(
        "--speakers",
        required=True,
        metavar="NAME,…",
        help="all speakers, for a model of one voice; those to add, for a model of several",
    )
    several.add_argument(
        "--embedding_size",
        type=int,
        default=256,
        metavar="N",
        help="channels of a speaker's embedding, where the model has none yet (default: 256)",
    )


def _multi_speaker(arguments: argparse.Namespace) -> None:
    from services.training.convert.speakers import convert

    ids = convert(
        arguments.folder,
        arguments.output,
        _names(arguments.speakers),
        embedding_size=arguments.embedding_size,
    )
    _say(arguments.output, f"speaks for {', '.join(f'{name} ({number})' for name, number in ids.items())}")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def _say(output: Path, done: str, notes: Sequence[str] = ()) -> None:
    print(f"{output}: {done}")
    for note in notes:
        print(f"  note: {note}")


def main(argv: Sequence[str]) -> int:
    """Run ``vits convert``."""
    arguments = parser().parse_args(argv)
    arguments.run(arguments)
    return 0
