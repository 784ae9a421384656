#if LL_PAIR
constexpr int kClusterBlocks = 2;
#else
constexpr int kClusterBlocks = 1;
#endif

// A launch of the source before it; 0 if every thread has ended by itself.
extern "C" int run(const void* packed, int wide, int high, int threads, int shared_bytes) {
  Params params;
  std::memcpy(&params, packed, sizeof params);
  const int grid = wide * high;
  gridDim = {static_cast<unsigned>(wide), static_cast<unsigned>(high)};
  blockDim = {static_cast<unsigned>(threads), 1};
  std::vector<std::unique_ptr<emulated::Block>> blocks;
  for (int block = 0; block < grid; ++block) {
    blocks.push_back(std::make_unique<emulated::Block>(shared_bytes, block % kClusterBlocks));
    std::memset(blocks.back()->memory.data(), 0x7f, blocks.back()->memory.size());
  }
  for (int block = 0; block < grid; ++block) blocks[block]->peer = blocks[(block ^ 1) % grid].get();
  std::vector<std::thread> running;
  for (int block = 0; block < grid; ++block) {
    for (int thread = 0; thread < threads; ++thread) {
      running.emplace_back([&, block, thread] {
        emulated::here = blocks[block].get();
        threadIdx = {static_cast<unsigned>(thread), 0};
        blockIdx = {static_cast<unsigned>(block % wide), static_cast<unsigned>(block / wide)};
        LL_ENTRY(params);
      });
    }
  }
  for (auto& thread : running) thread.join();
  return emulated::stuck + emulated::letters_to_oneself;
}
