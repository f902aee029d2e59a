"""From a bundle's folder to a model that is ready to answer."""

from collections.abc import Sequence

from promptdial.runtime.batching import EncoderModel
from promptdial.runtime.bundle import Bundle
from promptdial.runtime.contexts import Contexts
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.encoder_session import EncoderSession
from promptdial.runtime.errors import BundleInvalid
from promptdial.runtime.fitting import check_attention
from promptdial.runtime.generating import DecoderModel
from promptdial.runtime.manifest import DECODER, ENCODER, TOKEN_TABLE_NAME
from promptdial.runtime.memory import trim
from promptdial.runtime.profiles import Profile
from promptdial.runtime.session import require_version
from promptdial.runtime.static_decoder import StaticDecoderSession
from promptdial.runtime.static_session import StaticEncoderSession
from promptdial.runtime.stop_tokens import end_token, stop_tokens
from promptdial.runtime.table import TokenTable
from promptdial.runtime.text import TextEncoder, TextInvalid

Model = EncoderModel | DecoderModel


def placement_of(model: Model) -> dict[str, dict[str, int]]:
    """Nodes of each graph of fixed sizes by provider; {} for one that takes any."""
    session = model.session
    if isinstance(session, StaticEncoderSession | StaticDecoderSession):
        return session.placement
    return {}


def gives_levels(model: Model) -> bool:
    """Whether a model's graph gives what enters each layer."""
    return isinstance(model, EncoderModel) and model.session.gives_levels


def window_of(bundle: Bundle) -> int:
    """Tokens of the longest text: the base's positions, or the largest bucket's.

    Of a decoder prompt and answer too, which share the window of its cache.
    """
    positions, buckets = bundle.manifest.dims.max_positions, bundle.variant.text_buckets
    if not buckets:
        return positions
    largest = buckets[-1]
    decodes = bundle.manifest.family == DECODER
    return min(positions, largest.prefix if decodes else largest.text)


def open_model(
    bundle: Bundle,
    profile: Profile,
    threads: int | None,
    providers: Sequence[str] | None,
) -> Model:
    """Open what answers requests.

    Args:
        bundle: Its files were checked.
        profile: How to run.
        threads: Threads of one request; None for the profile's.
        providers: onnxruntime's execution providers; None for the CPU's.

    Raises:
        BundleInvalid, BundleTooNew, SessionFailed, MissingExtra, UsageError: As
            `Engine`.
    """
    manifest, variant = bundle.manifest, bundle.variant
    if manifest.family not in (ENCODER, DECODER):
        raise BundleInvalid(
            f"family {manifest.family!r}, this version runs encoders and decoders",
            "upgrade promptdial",
        )
    require_version(variant.min_onnxruntime)
    dims = manifest.dims
    # The tokenizer first: what parsing it leaves free, the graph may use.
    try:
        encoder = TextEncoder(bundle.tokenizer_json(), window_of(bundle))
    except TextInvalid as error:
        raise BundleInvalid(str(error), "export the bundle again") from None
    trim()
    table = TokenTable(
        bundle.path / TOKEN_TABLE_NAME,
        dims.vocab,
        dims.embedding,
        mapped=profile.mapped_table,
    )
    model: Model
    if manifest.family == ENCODER:
        session = _encoder_session(bundle, profile, threads, providers)
        model = EncoderModel(session, table, manifest, encoder)
    else:
        model = DecoderModel(
            _decoder_session(bundle, profile, threads, providers),
            table,
            manifest,
            encoder,
            stop_tokens(bundle.path, manifest.files, dims.vocab),
            end_token(bundle.path, manifest.files, dims.vocab),
        )
    check_attention(manifest, takes_prefix=model.session.takes_prefix)
    if manifest.level_outputs and not gives_levels(model):
        raise BundleInvalid(
            f"the manifest says level_outputs, {bundle.graph_path.name} has none",
            "export the bundle again",
        )
    trim()
    return model


def _encoder_session(
    bundle: Bundle,
    profile: Profile,
    threads: int | None,
    providers: Sequence[str] | None,
) -> EncoderSession | StaticEncoderSession:
    dims, variant = bundle.manifest.dims, bundle.variant
    if variant.buckets:
        return StaticEncoderSession(
            bundle.path, variant, dims, profile, threads, providers, _contexts(bundle)
        )
    path, features = bundle.graph_path, variant.cpu_features
    return EncoderSession(path, dims, profile, threads, providers, features)


def _decoder_session(
    bundle: Bundle,
    profile: Profile,
    threads: int | None,
    providers: Sequence[str] | None,
) -> DecoderSession | StaticDecoderSession:
    dims, variant = bundle.manifest.dims, bundle.variant
    if variant.buckets:
        return StaticDecoderSession(
            bundle.path, variant, dims, profile, threads, providers, _contexts(bundle)
        )
    return DecoderSession(
        bundle.graph_path,
        dims,
        profile,
        threads,
        providers,
        variant.cpu_features,
        packed_cache=variant.packed_cache,
    )


def _contexts(bundle: Bundle) -> Contexts:
    beside = bundle.path.absolute()
    return Contexts(beside.with_name(f"{beside.name}.contexts"), bundle.graph_digest)
