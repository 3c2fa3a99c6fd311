"""The flow, and nothing else.

    image + caption -> backbone/ -> attention_maps.py -> mask_head.py -> refiners/ -> masks
                       frozen VLM    gather by view       U-Net          SAM
                            `------- text_prompts.py: hidden states of the phrase --'

observer.py is the frozen half, head.py the trained half, grounder.py joins them.

Shape letters, here and in every docstring:

    B samples       P phrases of a sample     T tokens of all its phrases    S sequence
    L layers        N heads                   V views                        C = V * L * N
    M image tokens  D hidden size of the VLM  E width of SAM's prompts
    h, w            cells of a grid           H, W pixels of the image
"""
