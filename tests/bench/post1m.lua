-- One request, made once: 1 MB in chunks of 16 KB. wrk sends what `wrk.format` gives as it stands.
local chunk = string.format("%x\r\n%s\r\n", 16 * 1024, string.rep("x", 16 * 1024))
local body = string.rep(chunk, 64) .. "0\r\n\r\n"

wrk.format = function()
    local fields = { "POST " .. wrk.path .. " HTTP/1.1", "Transfer-Encoding: chunked" }
    for name, value in pairs(wrk.headers) do
        fields[#fields + 1] = name .. ": " .. value
    end
    return table.concat(fields, "\r\n") .. "\r\n\r\n" .. body
end
