"""Two-stage Deformable DETR with box refinement: H-Deformable-DETR without its second set of queries."""

from .h_deformable_detr_r50 import model

model.num_queries_one2many = 0
model.k_one2many = 0
model.mixed_selection = False
model.transformer.encoder.feedforward_dim = 1024
model.transformer.encoder.attn_dropout = 0.1
model.transformer.encoder.ffn_dropout = 0.1
model.transformer.decoder.feedforward_dim = 1024
model.transformer.decoder.attn_dropout = 0.1
model.transformer.decoder.ffn_dropout = 0.1
model.transformer.decoder.look_forward_twice = False
