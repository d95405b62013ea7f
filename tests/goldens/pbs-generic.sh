#!/bin/bash
#PBS -N out
#PBS -l select=1:ncpus=16:ngpus=1:gpu_mem=16gb
#PBS -l place=excl
#PBS -l walltime=02:00:00
#PBS -k oed
#PBS -j oe
#PBS -o "/home/me/work/out.job/out.log"
#PBS -r y
# The umask at submission; PBS would set 077.
umask 0022
