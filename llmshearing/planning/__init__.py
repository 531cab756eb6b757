"""What a run would do and need, found out before it starts.

config --prepared--> problems, shapes, everything that the run uses, opened (its data by data)
       --estimates--> parameters, memory, time, disk
       --text--> what `llmshearing plan` prints and a run logs before its first step
"""
