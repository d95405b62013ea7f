#!/bin/bash
#PBS -N out
#PBS -l ngpus=4,ncpus=48,mem=180GB
#PBS -l wd
#PBS -l storage=gdata/cd34+gdata/ab12+scratch/ab12
#PBS -l walltime=02:00:00
#PBS -q gpuvolta
#PBS -P ab12
#PBS -j oe
#PBS -o "/scratch/ab12/me/out.job/out.end"
#PBS -r y
# The umask at submission; PBS would set 077.
umask 0022
exec >> /scratch/ab12/me/out.job/out.log 2>&1
