// The OpenMP team that PyTorch's operators run on: two pools on the same cores would wait for each other's threads.
#pragma once

// As ks_parallel; false, and nothing done, where no team has been given.
bool ks_on_team(int threads, void (*work)(void*, int, int), void* context);
