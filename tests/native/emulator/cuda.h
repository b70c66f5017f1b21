#pragma once
#include <cstdint>

struct CUtensorMap {
  const uint16_t* data;
  int64_t rows, columns, stride;  // stride in elements
  int box_rows;
};
