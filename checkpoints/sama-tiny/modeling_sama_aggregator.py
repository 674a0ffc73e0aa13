"""SAMA's spatio-temporal context aggregator and region encoders (paper section 3; specs: model.md sections 3 to 6).

Letters in shape comments: V videos of one length, T context frames, P tokens a frame, C language-model width, H
Q-Former width, S spatial queries a frame, K temporal queries a window, W windows, L question tokens, N questions, R
regions, G side of the token grid.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Blip2QFormerModel

from .configuration_sama import SamaConfig


class SamaRegionEncoder(nn.Module):
    """Two features of a region: what it looks like (pooled) and which shape it has (specs: model.md section 6).

    Args:
        config ([`SamaConfig`]): sizes of the mask and of the language model.
        output_size (`int`): width of both features.
    """

    def __init__(self, config: SamaConfig, output_size: int):
        super().__init__()
        width, hidden = config.text_config.hidden_size, config.region_mlp_size
        self.pooled_projection = nn.Linear(width, output_size)
        self.shape_projection = nn.Sequential(
            nn.Linear(config.region_mask_size**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, output_size),
        )

    def forward(
        self, frame_features: torch.Tensor, cells: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes R regions.

        Args:
            frame_features (`torch.Tensor` of shape `(num_regions, tokens_per_frame, width)`): each region's own frame.
            cells (`torch.Tensor` of shape `(num_regions, tokens_per_frame)`): tokens of the frame that the region
            covers.
            masks (`torch.Tensor` of shape `(num_regions, mask_size, mask_size)`): the region's binary mask.

        Returns:
            the pooled feature and the shape feature, each of shape `(num_regions, output_size)`.
        """
        cells = (cells > 0).to(frame_features.dtype)  # (R, P)
        # A region smaller than a cell may cover none: its pooled feature is the projection of zeros, as in the
        # release.
        pooled = (cells.unsqueeze(1) @ frame_features).squeeze(1) / cells.sum(1, keepdim=True).clamp(min=1)  # (R, C)
        shape = masks.flatten(1).to(frame_features.dtype)  # (R, M * M)
        return self.pooled_projection(pooled), self.shape_projection(shape)

    def null_region_embedding(self) -> torch.Tensor:
        """What an all-zero region gives, both features added: the release's *null-region vector*, of shape
        `(output_size,)`."""
        pooled_bias = self.pooled_projection.bias
        return pooled_bias + self.shape_projection(pooled_bias.new_zeros(self.shape_projection[0].in_features))


class SamaContextInjection(nn.Module):
    """Lets every frame's tokens read the temporal tokens, and condenses each frame to one token (model.md section
    5)."""

    def __init__(self, config: SamaConfig):
        super().__init__()
        width, source = config.text_config.hidden_size, config.aggregator_config.temporal_qformer_config.hidden_size
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(source, width)
        self.value_projection = nn.Linear(source, width)
        self.attention_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)

    def forward(
        self, frame_features: torch.Tensor, temporal_tokens: torch.Tensor, videos: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            frame_features (`torch.Tensor` of shape `(num_videos, num_frames, tokens_per_frame, width)`)
            temporal_tokens (`torch.Tensor` of shape `(num_questions, num_windows * num_temporal_queries,
            qformer_width)`)
            videos (`torch.LongTensor` of shape `(num_questions,)`): the video of each question.

        Returns:
            `torch.Tensor` of shape `(num_questions, num_frames, width)`: one context token a frame, for every
            question.
        """
        queries = self.query_projection(frame_features).flatten(1, 2)  # (V, T * P, C), once for all questions
        keys, values = self.key_projection(temporal_tokens), self.value_projection(temporal_tokens)  # (N, W * K, C)
        attended = F.scaled_dot_product_attention(expand_per_question(queries, videos), keys, values)  # (N, T * P, C)
        # The mean over the tokens of a frame comes before the projection, which is linear, not after it
        attended = self.attention_projection(attended.unflatten(1, frame_features.shape[1:3]).mean(2))
        injected = attended + expand_per_question(frame_features.mean(2), videos)
        return self.output_projection(injected)  # (N, T, C)


def expand_per_question(rows: torch.Tensor, videos: torch.Tensor) -> torch.Tensor:
    """The row of each question's video. A single video's is not copied: at true size, frames are large."""
    return rows.expand(len(videos), *rows.shape[1:]) if len(rows) == 1 else rows[videos]


class SamaContextAggregator(nn.Module):
    """Summarises frames (spatial Q-Former), reads the summaries together with a question (temporal Q-Former) and gives
    one context token a frame and question. Specs: model.md sections 3 to 5."""

    def __init__(self, config: SamaConfig):
        super().__init__()
        settings = config.aggregator_config
        spatial, temporal = settings.spatial_qformer_config, settings.temporal_qformer_config
        self.window = settings.temporal_window
        self.null_region_scale = config.null_region_scale
        self.region_token_ids = (config.qformer_mask_token_id, config.qformer_position_token_id)
        self.spatial_projection = nn.Linear(config.text_config.hidden_size, spatial.encoder_hidden_size)
        self.spatial_norm = nn.LayerNorm(spatial.encoder_hidden_size)
        self.spatial_queries = nn.Parameter(torch.zeros(1, settings.num_spatial_queries, spatial.hidden_size))
        self.spatial_qformer = Blip2QFormerModel(spatial)
        self.word_embeddings = nn.Embedding(
            temporal.vocab_size, temporal.hidden_size, padding_idx=temporal.pad_token_id
        )
        self.position_embeddings = nn.Embedding(temporal.max_position_embeddings, temporal.hidden_size)
        self.temporal_queries = nn.Parameter(torch.zeros(1, settings.num_temporal_queries, temporal.hidden_size))
        self.temporal_qformer = Blip2QFormerModel(temporal)
        self.region_encoder = SamaRegionEncoder(config, temporal.hidden_size)
        self.injection = SamaContextInjection(config)

    def summarise_frames(self, frame_features: torch.Tensor) -> torch.Tensor:
        """Spatial Q-Former, each frame for itself: `(num_frames, tokens_per_frame, width)` to
        `(num_frames, num_spatial_queries, qformer_width)`."""
        frames = self.spatial_norm(self.spatial_projection(frame_features))
        queries = self.spatial_queries.expand(len(frames), -1, -1)
        return self.spatial_qformer(query_embeds=queries, encoder_hidden_states=frames).last_hidden_state

    def embed_questions(
        self, input_ids: torch.Tensor, regions: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Embeds questions of shape `(num_questions, length)`; rows at `<mask>` and `<pos>` are replaced, in reading
        order, by the pooled and the shape features of the regions (each of shape `(num_regions, qformer_width)`).

        Raises:
            ValueError: if the questions do not hold exactly one `<mask>` and one `<pos>` for every region.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        embeds = self.word_embeddings(input_ids) + self.position_embeddings(positions)  # (N, L, H)
        num_regions = 0 if regions is None else len(regions[0])
        for index, token_id in enumerate(self.region_token_ids):
            placeholder = input_ids == token_id
            if placeholder.sum() != num_regions:
                raise ValueError(
                    f"{num_regions} regions were given but the questions hold {int(placeholder.sum())} region "
                    f"placeholders (id {token_id}); was the question tokenizer saved with this model, and was a "
                    "question cut?"
                )
            if num_regions:
                embeds = embeds.masked_scatter(placeholder.unsqueeze(-1), regions[index].to(embeds.dtype))
        return embeds

    def read_questions(
        self,
        spatial_tokens: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        videos: torch.Tensor,
        regions: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Temporal Q-Former: every question reads every window of its video.

        Args:
            spatial_tokens (`torch.Tensor` of shape `(num_videos, num_frames, num_spatial_queries, qformer_width)`)
            videos (`torch.LongTensor` of shape `(num_questions,)`): the video of each question.
            input_ids, attention_mask (`torch.LongTensor` of shape `(num_questions, length)`): right padded questions.
            regions (*optional*): pooled and shape features of all regions of these questions, in reading order.

        Returns:
            `torch.Tensor` of shape `(num_questions, num_windows * num_temporal_queries, qformer_width)`.
        """
        text = self.embed_questions(input_ids, regions)
        queries = self.temporal_queries.expand(len(text), -1, -1)
        rows = torch.cat([queries, text], 1)  # (N, K + L, H)
        if self.null_region_scale:
            without_region = (input_ids != self.region_token_ids[0]).all(1)  # (N,)
            null_region = self.null_region_scale * self.region_encoder.null_region_embedding()
            rows = rows + without_region[:, None, None] * null_region
        mask = torch.cat([attention_mask.new_ones(queries.shape[:2]), attention_mask], 1)
        windows = spatial_tokens.flatten(1, 2).split(self.window, 1)  # W x (V, window, H), the last may be shorter
        return torch.cat([self.read_window(expand_per_question(window, videos), rows, mask) for window in windows], 1)

    def read_window(self, window: torch.Tensor, rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """One window, of each question's video, `(num_questions, window_tokens, qformer_width)`: `(num_questions,
        num_temporal_queries, qformer_width)`."""
        num_queries = self.temporal_queries.shape[1]
        output = self.temporal_qformer(
            query_embeds=rows,
            query_length=num_queries,
            attention_mask=attention_mask,
            encoder_hidden_states=window,
        )
        return output.last_hidden_state[:, :num_queries]

    def forward(
        self,
        frame_features: torch.Tensor,
        spatial_tokens: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        videos: torch.Tensor,
        regions: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Context tokens of all questions about videos of one length: `(num_questions, num_frames, width)`; arguments
        as of [`SamaContextInjection`] and [`read_questions`]."""
        temporal_tokens = self.read_questions(spatial_tokens, input_ids, attention_mask, videos, regions)
        return self.injection(frame_features, temporal_tokens, videos)
