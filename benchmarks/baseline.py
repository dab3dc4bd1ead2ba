"""A plain implementation of the published Mini-Omni inference code: the baseline that omnikit is compared with.

Everything is float32. Both sequences of batch-parallel decoding compute everything. Keys and values are stored for
every query head, in slots for the whole context, and every step attends to all slots. Text and audio heads of both
sequences are computed at every position of the prompt and of every step. Questions are padded to 30 s, and each four
frames are decoded by themselves. Facts: the public inference code of Mini-Omni (its repository, commit 26c31d5).

Letters: B = 2 sequences, H heads, E width of a head, L positions, S streams, D width, K codebooks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from omnikit.model import AdaptedSpeech, OmniLM
from omnikit.tasks import AUDIO_START, TASKS, make_prompt

CHUNK = 4
"""Number of frames that the baseline decodes to a waveform together."""


class Baseline:
    """An implementation of the published inference code that answers one question at a time.

    Args:
        model: model with a Qwen2 backbone and no TTS adapter, whose encoder pads to 30 s.
        slots: maximum number of positions of a prompt and its answer.

    Raises:
        ValueError: another kind of system.
    """

    def __init__(self, model: OmniLM, slots: int = 2048):
        self.model, self.config = model, model.llm.config
        if self.config.model_type != "qwen2" or model.tts_adapter is not None:
            raise ValueError("the baseline is the released architecture: a Qwen2 backbone without TTS adapter")
        heads, width = self.config.num_attention_heads, model.llm.trunk.layers[0].self_attn.head_dim
        self.cache = torch.zeros(self.config.num_hidden_layers, 2, 2, heads, slots, width)
        self.visible = torch.ones(slots, slots, dtype=torch.bool).tril()

    @torch.inference_mode()
    def hear(self, wav: Tensor) -> Tensor:
        """Encode a waveform [N] to features [T, D_in]."""
        features, lengths = self.model.encoder(wav[None], torch.tensor([wav.shape[0]]))
        return features[0, : int(lengths[0])]

    @torch.inference_mode()
    def steps(self, features: Tensor, max_steps: int) -> Iterator[Tensor]:
        """Decode an answer greedily from encoder features [T, D_in], yielding the S emitted tokens of each step."""
        layout = self.model.layout
        logits = self.prefill(features)
        position, text_done = logits[0].shape[1], False
        for step in range(max_steps):
            audio = [one[0, -1].argmax() for one in logits[1:]]  # sequence 0 answers with text and speech
            text = logits[0][1, -1].argmax()  # sequence 1 answers with text alone
            tokens = torch.stack([torch.tensor(layout.text.pad) if text_done else text, *audio])
            if step > 0:
                text_done |= int(text) == layout.text.eot
                if int(tokens[-1]) == layout.audio[-1].eoa:
                    return
            yield tokens
            silent = layout.pads()
            silent[0] = tokens[0]
            embedded = self.model.embed(torch.stack([tokens, silent])[..., None])
            logits = self.run(embedded, torch.tensor([position]))
            position += 1

    def prefill(self, features: Tensor) -> list[Tensor]:
        """Compute the logits at all positions of both prompts from encoder features [T, D_in].

        Returns:
            The text logits [2, L, V], then the logits [2, L, V_s] of each audio stream.
        """
        model, tasks = self.model, (TASKS["A1A2"], TASKS["A1T2"])
        adapted, lengths = model.adapter(features[None], torch.tensor([len(features)]))
        frames = int(lengths[0])
        prompts = [make_prompt(task, model.layout, text=None, audio_frames=frames).steps for task in tasks]
        speech = AdaptedSpeech(adapted.repeat(2, 1, 1), lengths.repeat(2), torch.tensor([AUDIO_START] * 2))
        embedded = model.embed(torch.stack(prompts), speech)
        return self.run(embedded, torch.arange(embedded.shape[1]))

    def run(self, x: Tensor, positions: Tensor) -> list[Tensor]:
        """Compute the logits of embeddings [2, L, D] at positions [L], in the format of `prefill`."""
        rotary = self.model.llm.trunk.rotary_emb(x, positions[None])
        for layer, cache in zip(self.model.llm.trunk.layers, self.cache, strict=True):
            x = x + self._attend(layer.self_attn, layer.input_layernorm(x), positions, rotary, cache)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        hidden = self.model.llm.final_norm(x)
        return [self.model.text_logits(hidden), *self.model.audio_logits(hidden)]

    def _attend(
        self, attention: nn.Module, x: Tensor, positions: Tensor, rotary: tuple[Tensor, Tensor], cache: Tensor
    ) -> Tensor:
        """Compute the attention output [2, L, D] of states [2, L, D] over a KV cache [2, B, H, slots, E]."""
        width = attention.head_dim
        query, key, value = (
            projection(x).unflatten(-1, (-1, width)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        groups = query.shape[1] // key.shape[1]
        cache[0][:, :, positions] = key.repeat_interleave(groups, dim=1)
        cache[1][:, :, positions] = value.repeat_interleave(groups, dim=1)
        mask = self.visible[positions][None, None]
        found = nn.functional.scaled_dot_product_attention(query, cache[0], cache[1], attn_mask=mask)
        return attention.o_proj(found.transpose(1, 2).flatten(2))

    def sounds(self, steps: Iterator[Tensor]) -> Iterator[Tensor]:
        """Decode the emitted steps of an answer, yielding a waveform [n] for every `CHUNK` complete frames."""
        pattern, frames, emitted = self.model.pattern, 0, []
        for tokens in steps:
            emitted.append(tokens)
            steps_so_far = torch.stack(emitted, dim=-1)[1:]
            codes = self.model.layout.to_codes(steps_so_far, pattern.codebooks(steps_so_far.shape[-1]))
            known = pattern.deinterleave(codes[None])
            if known.shape[-1] - frames == CHUNK:
                chunk = known[..., frames:].clamp(0, self.model.layout.codebook_size - 1)
                frames = known.shape[-1]
                yield self.decode(chunk)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [1, K, CHUNK] to a waveform [n], without the context of neighbouring frames."""
        return self.model.codec.decode(codes)[0]
