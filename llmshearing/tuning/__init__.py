"""A pruned model that follows instructions: supervised fine-tuning on conversations.

    files --conversations--> turns of user and assistant, bad ones counted
          --templates--> tokens, and which of them the assistant says
          --packing--> rows of at most `max_length` tokens  --training--> trl's SFT trainer

`llmshearing tune` is the command.
"""
