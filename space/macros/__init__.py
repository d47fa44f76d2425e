"""Macros: parts of a network made of other parts.

    base              what a macro declares
    running           how its parts are run
    parallel          branches side by side: sum, gate, concatenation
    cell              a small graph with a decision on every edge
    stage             layers at another width and resolution
    ushape            down, inner layers, up, with a skip
    looped            layers that run several times
    recursion, token_recursion   how they do: encoded, in several streams, in any order; some of the tokens, sliced
    routed, framed    layers that some tokens pass by, of a sequence or of every frame of it
    gated             layers that some sequences pass by
    exits             layers that the stream may leave early
    transforms        fewer tokens as one matrix W: choosers and clustering make it, reductions are its configs
    reduced, reduce   layers among which tokens get fewer, and back; items that change how many go on
    dynamic_drop      layers for the tokens that an interpreter keeps
    patchout          patches left out while training, and positions by row and column
    hierarchy           layers over chunks of the sequence, between layers over its tokens
    chunking, dynamic_chunks, fixed_chunks, word_chunks   how it is cut: learned, every so many tokens, at marks
    block_encoder       layers over one block at a time, which then is one vector
    latent_reasoning    layers that take the end of the sequence through themselves again
    segment_recurrence  layers over one segment at a time, with a memory between segments
    memory_context, memory_gate   attention that a memory gates: within segments, over what it recalls; in a window
    persistent_tokens   layers behind learned tokens
    encoder_decoder   layers that read what other layers made of the source
    stack, residual_*   layers with another residual topology; units are their sublayers
    dense_group         layers that each read the concatenation of all before
    conditioned, prompted   layers that read a condition; a text and a time, the model's second input
    class_attention     a class token that reads the patches
    token_pooling, multiscale   stages of image transformers: pooled tokens, pooled attention
    nested              layers among words inside layers among sentences
    dense_prediction    a map of what several layers gave
    stream_norm         a norm on the stream itself
"""
